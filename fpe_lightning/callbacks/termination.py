"""A checkpoint when a scheduler ends the process."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from fpe_lightning.callbacks.lightnings import Callback, instances

NAME = "terminated.ckpt"


class CheckpointOnTermination(Callback):
    """Writes ``terminated.ckpt`` next to the other checkpoints when SIGTERM ends a fit.

    Lightning ends the fit after the step that runs. A run that resumes from the file goes on with the next one. Nothing
    is written where no ``ModelCheckpoint`` is configured, or no step was taken yet.

    Example:
        >>> trainer = pl.Trainer(callbacks=[CheckpointOnTermination()], logger=False, enable_checkpointing=False)
    """

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        saving = instances(trainer.callbacks, "callbacks", "ModelCheckpoint")  # type: ignore[attr-defined]
        folder = saving[0].dirpath if saving else None
        if type(exception).__name__ != "SIGTERMException" or trainer.state.fn != "fit" or not folder:
            return
        if trainer.global_step > 0 and not trainer.sanity_checking:
            trainer.save_checkpoint(Path(folder) / NAME)
            rank_zero_info(f"SIGTERM ends the run after step {trainer.global_step}; resume from {Path(folder) / NAME}.")
