"""Averages of the weights that other callbacks hold (EMA, SWA); they expand together with the module."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import AveragedModel


def averages_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
    """Every average of the module that a callback of the Trainer keeps, such as EMA and SWA callbacks.

    An average is a module of the LightningModule's own class in an attribute of a callback, directly or inside another
    module (an ``AveragedModel``).

    Args:
        trainer: The trainer, with its callbacks.
        pl_module: The module.

    Returns:
        The averages, each once.
    """
    values = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
    inside = [module for value in values if isinstance(value, nn.Module) for module in value.modules()]
    averages = [module for module in inside if type(module) is type(pl_module) and module is not pl_module]
    return list(dict.fromkeys(averages))


def check_averages(trainer: pl.Trainer) -> None:
    """Refuse an average over buffers that cannot average masks; it would fail at the first update after a split.

    Args:
        trainer: The trainer, with its callbacks.

    Raises:
        MisconfigurationException: With the callback and the argument that helps.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for value in vars(callback).values():
            if isinstance(value, AveragedModel) and value.use_buffers and not _keeps_masks(value):
                raise MisconfigurationException(
                    f"{type(callback).__name__} averages buffers by a function that cannot average the bool masks of a "
                    "split: pass `use_buffers=False`, which copies buffers from the module."
                )


def _keeps_masks(average: AveragedModel) -> bool:
    """Whether the average of bool buffers works and keeps True; a plain mean subtracts them, which torch refuses."""
    probe = nn.Linear(1, 1)
    probe.register_buffer("mask", torch.ones(1, dtype=torch.bool))
    trial = AveragedModel(probe, avg_fn=average.avg_fn, multi_avg_fn=average.multi_avg_fn, use_buffers=True)
    try:
        for _ in range(2):
            trial.update_parameters(probe)
    except RuntimeError:
        return False
    return bool(trial.module.mask)
