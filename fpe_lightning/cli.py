"""The command line: LightningCLI with interpolation over all of the config, and a test of the best weights after a fit."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override


class CLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for any module, data and callbacks named in a config."""

    def __init__(self) -> None:
        # `${model.x}` in a file means the key of the whole config, whichever file or flag sets it.
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
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
