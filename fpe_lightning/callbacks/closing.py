"""The last lines of a fit: where its figure, checkpoints and logs are, and how to look at them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_only


def closing_lines(folder: str | None, checkpoint: str, figures: Iterable[Path], board: str | None) -> list[str]:
    """The lines, without those of files that a run did not write.

    Args:
        folder: Folder of the run.
        checkpoint: Path of the best checkpoint, or "".
        figures: Paths of figures.
        board: Folder that TensorBoard reads, or None.

    Example:
        >>> closing_lines("logs/a", "logs/a/checkpoints/best.ckpt", [Path("logs/a/compare.png")], "logs")
        ... # doctest: +NORMALIZE_WHITESPACE
        ['Figure:      logs/a/compare.png', 'Checkpoint:  logs/a/checkpoints/best.ckpt', 'Logs:        logs/a',
         'Look at it:  tensorboard --logdir logs']
    """
    lines = [f"Figure:      {figure}" for figure in figures]
    lines += [f"Checkpoint:  {checkpoint}"] if checkpoint else []
    lines += [f"Logs:        {folder}"] if folder else []
    return lines + ([f"Look at it:  tensorboard --logdir {board}"] if board else [])


@rank_zero_only
def say_where_files_are(trainer: pl.Trainer) -> None:
    """Print the lines of a run."""
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = next((each for each in trainer.loggers if isinstance(each, TensorBoardLogger)), None)
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    figures = [path for each in callbacks if (path := getattr(each, "figure_path", None))]
    checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
    folder = logger.log_dir if logger else None
    for line in closing_lines(folder, checkpoint, figures, str(logger.save_dir) if logger else None):
        print(_relative(line))


def _relative(line: str) -> str:
    """A line without the current directory, which makes paths long."""
    return line.replace(f"{Path.cwd()}/", "")
