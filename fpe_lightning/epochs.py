"""Lightning's count of epochs, and its repair in a run that resumes at the last step of an epoch."""

from __future__ import annotations

from typing import Any


def begin_epoch(trainer: Any) -> None:
    """Count an epoch as begun that Lightning began without counting it; to be called before a training batch.

    A run that resumes from a checkpoint of the last step of an epoch begins the next one, but does not count it as
    ready and started. All later checkpoints of that run have one epoch too few, and a run that resumes from one of them
    in the middle of an epoch begins this epoch again.

    Args:
        trainer: A Trainer of either package of Lightning, inside of ``fit``.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> progress = trainer.fit_loop.epoch_progress
        >>> progress.current.ready, progress.current.started, progress.current.processed = 4, 4, 4
        >>> begin_epoch(trainer)
        >>> progress.current.ready, progress.current.started
        (5, 5)
    """
    progress = trainer.fit_loop.epoch_progress
    for count in (progress.current, progress.total):
        # Inside of an epoch, one more epoch has begun than ended.
        if count.ready == count.started == count.processed:
            count.ready = count.started = count.processed + 1
