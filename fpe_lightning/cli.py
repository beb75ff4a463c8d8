"""The command line: LightningCLI, interpolation over the whole config, and a test of the best weights after a fit."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

# Classes that are imported can be named without their module: `--model=Classifier`, `--data=EmbeddingDataModule`.
import fpe_lightning.data
import fpe_lightning.modules
import fpe_lightning.networks  # noqa: F401
from fpe_lightning.callbacks import CompareWithParent, ExpansionCallback, RunSummary
from fpe_lightning.callbacks.closing import say_where_files_are
from fpe_lightning.checkpoints.file import check_checkpoint_file
from fpe_lightning.command_line import Parser
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
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best weights when the fit ends."
        )
        assert isinstance(parser, LightningParser)
        parser.say_refusals_of(ExpansionCallback)
        parser.route_callback_keys()

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

    def before_fit(self) -> None:
        """Let comparisons show one table, after the test that follows."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, CompareWithParent):
                callback.table_after_fit = not self.config["fit"]["test_after_fit"]

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last weights where no checkpoint follows a metric; say where files are."""
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
