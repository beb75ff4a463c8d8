"""The parser of the commands: configs with a base, keys of callbacks, and one sentence for a mistake."""

from __future__ import annotations

import textwrap
import traceback
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._typehints import ActionTypeHint
from typing_extensions import override

from fpe_lightning.command_line.base import check_yaml, with_base
from fpe_lightning.command_line.endings import LONGEST, wants_traceback
from fpe_lightning.command_line.mistakes import arguments_of, refusal, unknown_key
from fpe_lightning.expansion import BaseExpansion
from fpe_lightning.partitions import Partition
from fpe_lightning.pruning import Magnitude, PruningRule


class Parser(ArgumentParser):
    """A parser for configs that may have a base, which answers mistakes with one sentence.

    An unknown key, name or class gets a sentence with the one that was probably meant. What an expansion, a partition
    or a pruning rule refuses gets the sentence of its own error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A protocol that asks for `__call__` alone would match every module too.
        for kind in (BaseExpansion, Magnitude, *Partition.__subclasses__(), *PruningRule.__subclasses__()):
            self.say_refusals_of(kind)

    def say_refusals_of(self, kind: type) -> None:
        """Print the sentence of the error, and exit, where a class or a subclass of it refuses its arguments."""
        self.add_instantiator(self._build, kind)

    def route_callback_keys(self) -> None:
        """Let ``--trainer.callbacks.KEY`` change the callback that has this key; see :class:`CallbackAction`."""
        for action in self._actions:
            if action.dest == "trainer.callbacks":
                action.__class__ = CallbackAction

    def _build(self, kind: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return kind(*args, **kwargs)
        except Exception as error:
            self.exit(2, f"error: {error}\n")

    @override
    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file, on top of its base if it has one."""
        try:
            check_yaml(str(path))
            content = with_base(path)
        except ValueError as error:
            self.exit(2, f"error: {error}\n")
        return super().parse_path(path, *args, **kwargs) if content is None else self.parse_string(content, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sentence = unknown_key(message, self._known())
        if not self.exit_on_error:
            super().error(message, ex)
        if wants_traceback() and ex is not None:
            traceback.print_exception(ex)
        self.exit(
            2,
            f"error: {sentence or textwrap.shorten(refusal(' '.join(message.split())), LONGEST, placeholder=' ...')}\n",
        )

    def _known(self) -> list[str]:
        subparsers = getattr(self._subcommands_action, "choices", None) or {}
        parsers = (self, *subparsers.values())
        return [*subparsers, *(action.dest for parser in parsers for action in parser._actions)]


class CallbackAction(ActionTypeHint):
    """Takes ``--trainer.callbacks.KEY`` for the last callback that has this key; jsonargparse takes the last of all.

    ``--trainer.callbacks.CLASS.KEY`` is for the last callback of this class. A new expansion keeps ``alpha`` and
    ``seed`` of the one that it replaces, and nothing else.
    """

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 4:
            return super().__call__(*args, **kwargs)
        parser, config, value, option = args
        before, (name, _, key) = config.get(self.dest), option.removeprefix(f"--{self.dest}").partition(".")
        if name or not key or not isinstance(before, list):
            return super().__call__(*args)
        classes = [callback["class_path"] for callback in before]
        head, _, rest = key.removeprefix("init_args.").partition(".")
        named = [n for n, path in enumerate(classes) if path.rpartition(".")[2] == head]
        if named and rest:
            key, takers = rest, named
        else:
            takers = [n for n, path in enumerate(classes) if head in arguments_of(path)]
        if not takers:
            return super().__call__(*args)
        # It is last while the key is set, and then goes back to its place.
        chosen = before[takers[-1]]
        if key.removeprefix("init_args.") == "expansion":
            _keep_alpha_and_seed(chosen)
        others = [callback for callback in before if callback is not chosen]
        config[self.dest] = [*others, chosen]
        super().__call__(parser, config, value, f"--{self.dest}.{key}")
        *others, chosen = config[self.dest]
        others.insert(takers[-1], chosen)
        config[self.dest] = others
        return None


def _keep_alpha_and_seed(callback: Namespace) -> None:
    """Drop all other arguments of a callback's expansion, which the next one need not have."""
    expansion = callback.get("init_args", Namespace()).get("expansion")
    if isinstance(expansion, Namespace) and "init_args" in expansion:
        kept = {name: value for name, value in vars(expansion["init_args"]).items() if name in ("alpha", "seed")}
        expansion["init_args"] = Namespace(**kept)
