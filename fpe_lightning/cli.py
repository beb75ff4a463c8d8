"""The command line: LightningCLI, interpolation over the whole config, and a test of the best weights after a fit."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_utilities.core.rank_zero import rank_zero_only
from typing_extensions import override

# Classes that are imported can be named without their module: `--model=Classifier`, `--data=EmbeddingDataModule`.
import fpe_lightning.data
import fpe_lightning.modules
import fpe_lightning.networks  # noqa: F401
from fpe_lightning.callbacks import CompareWithParent, ExpansionCallback, RunSummary
from fpe_lightning.callbacks.closing import say_where_files_are
from fpe_lightning.callbacks.termination import CheckpointOnTermination
from fpe_lightning.checkpoints.file import check_checkpoint_file
from fpe_lightning.command_line import Parser, end
from fpe_lightning.extras import extra

with extra("template", "The command line"):
    from jsonargparse import set_parsing_settings

KEYWORDS = ("best", "last", "hpc")
"""Words that Lightning takes instead of a checkpoint's path."""


class LightningParser(Parser, LightningArgumentParser):
    """A parser of this project that adds arguments of Lightning's classes."""


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config next to the logs; without a logger the run has no folder of its own."""

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
        _keep_advertisements_and_inner_warnings_out()
        # `${model.x}` in a file means the key of the whole config, whichever file or flag sets it.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            parser_class=LightningParser,
            args=args,
            run=run,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"callbacks": CheckpointOnTermination()},
        )
        if run:
            self._end_if_terminated()

    def _end_if_terminated(self) -> None:
        """Stop where SIGTERM came after the last step, as Lightning looks at it after steps alone."""
        if self.trainer.received_sigterm:
            raise SIGTERMException

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best weights when the fit ends."
        )
        assert isinstance(parser, LightningParser)
        parser.say_refusals_of(ExpansionCallback)
        parser.route_callback_keys()

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the Trainer, and give its run a folder that no other run gets."""
        trainer = super().instantiate_trainer(**kwargs)
        if getattr(rank_zero_only, "rank", 0) == 0:
            for logger in trainer.loggers:
                reserve_folder(logger)
        return trainer

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: config and command line decide the model, and a checkpoint of another one is refused as it loads.

        Lightning would let the hyper-parameters in the checkpoint win over both, in silence.
        """

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse a broken checkpoint before anything is built."""
        config: Any = self.config[self.subcommand] if self.subcommand else {}
        if "weights_only" in config and config["weights_only"] is None:
            config["weights_only"] = True  # else Lightning runs code in checkpoints that it reads from a URL
        path = str(config.get("ckpt_path") or "")
        if not path or path in KEYWORDS or path.startswith("registry") or "://" in path:
            return
        check_checkpoint_file(path)

    def before_fit(self) -> None:
        """Let comparisons show one table, after the test that follows."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, CompareWithParent):
                callback.table_after_fit = not self.config["fit"]["test_after_fit"]

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last weights where no checkpoint follows a metric; say where files are."""
        self._end_if_terminated()
        config: Any = self.config["fit"]
        if config["test_after_fit"]:
            checkpoint = self.trainer.checkpoint_callback
            best = isinstance(checkpoint, ModelCheckpoint) and bool(checkpoint.best_model_path)
            self.trainer.test(
                self.model,
                datamodule=self.datamodule,
                ckpt_path="best" if best else None,
                verbose=not self._has_table(),
            )
        say_where_files_are(self.trainer)

    def _has_table(self) -> bool:
        """Whether a callback prints the test metrics in a table of its own."""
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(isinstance(each, RunSummary) or getattr(each, "compares", False) for each in callbacks)


def _keep_advertisements_and_inner_warnings_out() -> None:
    """Drop what Lightning says on every run and nobody can act on: its tip, and a warning about a call of its own."""
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    for package in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(f"{package}.utilities.rank_zero").addFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def reserve_folder(logger: Logger) -> None:
    """Make the next ``version_N`` of a logger's folder, so that runs started together do not share one.

    Lightning takes the first number that is free when the run starts to log, and several runs find the same.

    Args:
        logger: One whose version is not chosen yet; any other is left as it is.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> loggers = [TensorBoardLogger(folder), TensorBoardLogger(folder)]
        >>> for each in loggers:
        ...     reserve_folder(each)
        >>> [each.version for each in loggers]
        [0, 1]
    """
    if not isinstance(logger, (TensorBoardLogger, CSVLogger)) or logger._version is not None:
        return
    while True:
        version = logger._get_next_version()
        try:
            os.makedirs(os.path.join(logger.root_dir, f"version_{version}"))
        except FileExistsError:
            if not os.path.isdir(logger.root_dir):  # a file is in its place
                raise
        else:
            logger._version = version
            return


def main(words: list[str] | None = None) -> int:
    """Run a command line to its end; see :func:`~fpe_lightning.command_line.end`.

    Args:
        words: Its words; None takes those of the process.

    Returns:
        The exit code.
    """

    def command(words: list[str]) -> None:
        sys.argv[1:] = words  # Lightning warns of words that come from elsewhere
        CLI()

    return end(command, sys.argv[1:] if words is None else words)
