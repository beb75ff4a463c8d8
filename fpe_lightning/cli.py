"""The command line: LightningCLI, interpolation over the whole config, and a test of the best weights after a fit."""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

# Classes that are imported can be named without their module: `--model=Classifier`, `--data=EmbeddingDataModule`.
import fpe_lightning.callbacks
import fpe_lightning.data
import fpe_lightning.modules
import fpe_lightning.networks  # noqa: F401
from fpe_lightning.checkpoints.file import check_checkpoint_file

# How jsonargparse says that it does not know a key; the first to match is the innermost in its nested messages.
REJECTIONS = (
    re.compile(r"(?P<owner>Group) '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'"),
    re.compile(r"Subcommand '\w+' does not accept option '(?P<key>[\w.]+)'"),
    re.compile(r"Option '(?P<key>[\w.]+)' is not accepted"),
    re.compile(r"unrecognized arguments: -*(?P<key>[\w.]+)"),
    re.compile(r"argument (?P<owner>subcommand): invalid choice: '(?P<key>[^']*)'"),
    re.compile(r"(?P<owner>module) '(?P<group>[\w.]+)' has no attribute '(?P<key>\w+)'"),
)


KEYWORDS = ("best", "last", "hpc")
"""What Lightning takes for a checkpoint's path beside a path."""


class Parser(LightningArgumentParser):
    """A parser that answers an unknown key with one sentence, and with the key that was probably meant."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sentence = unknown_key(message, self._known())
        if sentence is None or not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {sentence}\n")

    def _known(self) -> list[str]:
        subparsers = getattr(self._subcommands_action, "choices", None) or {}
        parsers = (self, *subparsers.values())
        return [*subparsers, *(action.dest for parser in parsers for action in parser._actions)]


def unknown_key(message: str, known: Iterable[str]) -> str | None:
    """Turn a parser's message about an unknown key into one sentence; None for any other message.

    Args:
        message: What jsonargparse says.
        known: Keys and subcommands of the parser; where the message names a class, its arguments are looked at instead.

    Example:
        >>> unknown_key("Problem with given class_path 'torch.nn.Linear': Option 'bais' is not accepted", [])
        'Unknown key `bais` for torch.nn.Linear. Did you mean `bias`?'
        >>> unknown_key("Group 'trainer' does not accept option 'max_epoch'", ["trainer.max_epochs"])
        'Unknown key `trainer.max_epoch`. Did you mean `trainer.max_epochs`?'
    """
    found = next(filter(None, (pattern.search(message) for pattern in REJECTIONS)), None)
    if found is None:
        return None
    parts = found.groupdict()
    if parts.get("owner") == "subcommand":
        return _sentence("subcommand", parts["key"], known)
    if parts.get("owner") == "module":
        return _sentence("class", parts["key"], dir(pydoc.locate(parts["group"])), f" in {parts['group']}")
    class_path = _class_of(message, found)
    if class_path is None:
        return _sentence("key", ".".join(filter(None, (parts.get("group"), parts["key"]))), known)
    # A key of a nested class may be spelled with the place where its arguments stand in the file.
    key = parts["key"].split("init_args.")[-1]
    return _sentence("key", key, _arguments(class_path), f" for {class_path}")


def _sentence(what: str, key: str, known: Iterable[str], where: str = "") -> str:
    choices = list(known)
    if key in choices:
        return f"`{key}` has to come after the subcommand."
    nearest = difflib.get_close_matches(key, choices, n=1)
    root, dot, rest = key.partition(".")
    if not nearest and dot:
        # What follows the first word may belong to a class, whose arguments are no keys of the parser.
        roots = difflib.get_close_matches(root, {choice.partition(".")[0] for choice in choices} - {root}, n=1)
        nearest = [f"{name}.{rest}" for name in roots]
    return f"Unknown {what} `{key}`{where}." + (f" Did you mean `{nearest[0]}`?" if nearest else "")


def _class_of(message: str, found: re.Match[str]) -> str | None:
    """The class whose argument was rejected: named last before it, or, for a callable, after it in the same line."""
    before = re.findall(r"class_path '([\w.]+)'", message[: found.start()])
    after = re.match(r"\. Got value: Namespace\(class_path='([\w.]+)'", message[found.end() :])
    return after.group(1) if after else (before[-1] if before else None)


def _arguments(class_path: str) -> list[str]:
    """Names of the arguments of a class, and of its bases, which it may hand them on to."""
    found = pydoc.locate(class_path)
    classes = inspect.getmro(found) if inspect.isclass(found) else [found]
    names = [name for c in classes if callable(c) and c is not object for name in inspect.signature(c).parameters]
    return [name for name in names if name not in ("args", "kwargs")]


class SaveConfig(SaveConfigCallback):
    """Keeps the resolved config beside the logs; without a logger there is no folder that is the run's own."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` into the logger's folder."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class CLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for any module, data and callbacks that a config names.

    With ``--ckpt_path``, config and command line win over the hyper-parameters that the checkpoint was made with. The
    state of optimizer and scheduler, the learning rate with it, comes from the checkpoint when a fit goes on.

    Args:
        args: Command line words; None takes those of the process.
        run: Whether to run the subcommand, or only to parse and instantiate.
    """

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        # `${model.x}` in a file means the key of the whole config, whichever file or flag sets it.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            parser_class=Parser,
            args=args,
            run=run,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best weights when the fit ends."
        )

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: config and command line decide the model, and a checkpoint of another one is refused as it loads.

        Lightning would let the hyper-parameters in the checkpoint win over both, in silence.
        """

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse a broken checkpoint before anything is built."""
        path = str(self.config[self.subcommand].get("ckpt_path") or "") if self.subcommand else ""
        if not path or path in KEYWORDS or path.startswith("registry") or "://" in path:
            return
        try:
            check_checkpoint_file(path)
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(2)

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last weights where no checkpoint follows a metric."""
        config: Any = self.config["fit"]
        if not config["test_after_fit"]:
            return
        checkpoint = self.trainer.checkpoint_callback
        best = isinstance(checkpoint, ModelCheckpoint) and bool(checkpoint.best_model_path)
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path="best" if best else None)
