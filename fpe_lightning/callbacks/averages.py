"""Averages of the weights that other callbacks hold (EMA, SWA); they expand together with the module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.expansion.shadows import find_shadows
from fpe_lightning.expansion.teachers import is_copy


def averages_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
    """Every average of the module that a callback of the Trainer keeps, such as EMA and SWA callbacks.

    An average is a module of the LightningModule's own class, or one with the structure and much of the weights of a
    part of it: in an attribute of a callback, directly, in a list or a dict, or inside another module (an
    ``AveragedModel``). A list or a dict of the module itself, which torch does not look into, counts too.

    Args:
        trainer: The trainer, with its callbacks.
        pl_module: The module.

    Returns:
        The averages, each once.
    """
    values = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
    values += [value for name, value in vars(pl_module).items() if name != "_modules"]
    own = set(pl_module.modules())
    averages: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in (module for value in values for module in _modules(value)):
        if module in own or module in inside:
            continue
        if type(module) is type(pl_module) or is_copy(module, pl_module):
            averages.append(module)
            inside.update(module.modules())
    return averages


def holders_of_shadows(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Any]:
    """Objects in attributes of callbacks and of the module that average weights in a list or a dict of tensors.

    ``EMAModel`` of diffusers and ``ExponentialMovingAverage`` of torch_ema are such. A callback that defines
    ``on_after_expansion`` changes its own.
    """
    callbacks = [each for each in trainer.callbacks if not hasattr(each, "on_after_expansion")]  # type: ignore[attr-defined]
    values = [value for each in (*callbacks, pl_module) for value in vars(each).values()]
    kept = [value for value in values if not isinstance(value, (pl.Trainer, Optimizer)) and value is not trainer]
    return [value for value in kept if find_shadows([value], pl_module)]


def _modules(value: Any) -> Iterator[nn.Module]:
    """All modules in an attribute, the outer ones first."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    for each in entries:
        if isinstance(each, nn.Module):
            yield from each.modules()


def check_averages(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse an average over buffers that cannot average masks; it would fail at the first update after a split.

    Args:
        trainer: The trainer, with its callbacks.
        pl_module: The module, which may hold averages too.

    Raises:
        MisconfigurationException: With the callback and the argument that helps.
    """
    holders = [(type(callback).__name__, vars(callback).values()) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    for name, values in [*holders, (type(pl_module).__name__, pl_module.modules())]:
        for value in values:
            if isinstance(value, AveragedModel) and value.use_buffers and not _keeps_masks(value):
                raise MisconfigurationException(
                    f"{name} averages buffers by a function that cannot average the bool masks of a split: pass "
                    "`use_buffers=False`, which copies buffers from the module."
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
