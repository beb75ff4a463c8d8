"""The command line: LightningCLI, interpolation over the whole config, and a test of the best weights after a fit."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

UNKNOWN = re.compile(
    r"(?:[Oo]ption|[Kk]ey) '([\w.]+)'(?: is not (?:accepted|expected))?|[Uu]nrecognized arguments: --([\w.]+)"
)


class Parser(LightningArgumentParser):
    """A parser that answers an unknown key with one sentence, and with the key that was probably meant."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sentence = unknown_key(message, (action.dest for action in (self._subparser(message) or self)._actions))
        if sentence is None or not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(2)

    def _subparser(self, message: str) -> LightningArgumentParser | None:
        found = re.search(r"[Ss]ubcommand '(\w+)'", message)
        choices = getattr(self._subcommands_action, "choices", None) or {}
        return choices.get(found.group(1)) if found else None


def unknown_key(message: str, known: Iterable[str]) -> str | None:
    """Turn a parser's message about an unknown key into one sentence; None for any other message.

    Args:
        message: What jsonargparse says.
        known: Keys of the parser itself; where the message names a class, its arguments are looked at instead.

    Example:
        >>> unknown_key("Problem with given class_path 'torch.nn.Linear': Option 'bais' is not accepted", [])
        'Unknown key `bais` for torch.nn.Linear. Did you mean `bias`?'
        >>> unknown_key("Subcommand 'fit' does not accept option 'trainer.max_epoch'", ["trainer.max_epochs"])
        'Unknown key `trainer.max_epoch`. Did you mean `trainer.max_epochs`?'
    """
    rejected = re.search(r"not accept|not expected|[Uu]nrecognized", message)
    matches = [match for match in UNKNOWN.finditer(message) if match]
    if not rejected or not matches:
        return None
    key = (matches[-1].group(1) or matches[-1].group(2)).split(".init_args.")[-1]
    classes = re.findall(r"class_path '([\w.]+)'", message[: matches[-1].start()])
    if classes:
        module, _, name = classes[-1].rpartition(".")
        known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    nearest = difflib.get_close_matches(key, list(known), n=1)
    where = f" for {classes[-1]}" if classes else ""
    return f"Unknown key `{key}`{where}." + (f" Did you mean `{nearest[0]}`?" if nearest else "")


class CLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for any module, data and callbacks that a config names.

    Args:
        args: Command line words; None takes those of the process.
        run: Whether to run the subcommand, or only to parse and instantiate.
    """

    parser_class = Parser

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        # `${model.x}` in a file means the key of the whole config, whichever file or flag sets it.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            args=args,
            run=run,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_kwargs={"overwrite": True},
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best weights when the fit ends."
        )

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last weights where no checkpoint follows a metric."""
        config: Any = self.config["fit"]
        if not config["test_after_fit"]:
            return
        checkpoint = self.trainer.checkpoint_callback
        best = isinstance(checkpoint, ModelCheckpoint) and bool(checkpoint.best_model_path)
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path="best" if best else None)
