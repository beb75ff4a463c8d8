"""Averages of the weights that other callbacks hold, which have to be split together with the module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fpe_lightning.expansion.teachers import is_copy


def averages_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
    """Every copy of the module that a callback of the Trainer keeps, such as those of EMA and SWA callbacks.

    A copy is a module of the LightningModule's own class, or one with the structure and much of the weights of a part
    of it, held in an attribute of a callback, directly, in a list or a dict, or inside of another module (an
    ``AveragedModel``). What the module itself holds in a list or a dict, out of sight of torch, counts too.
    """
    held = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
    hidden = [value for name, value in vars(pl_module).items() if name != "_modules"]
    own = set(pl_module.modules())
    copies: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in (module for value in (*held, *hidden) for module in _modules(value)):
        if module in own or module in inside:
            continue
        if type(module) is type(pl_module) or is_copy(module, pl_module):
            copies.append(module)
            inside.update(module.modules())
    return copies


def _modules(value: Any) -> Iterator[nn.Module]:
    """All modules in an attribute, the outer ones first."""
    if isinstance(value, nn.Module):
        yield from value.modules()
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            if isinstance(each, nn.Module):
                yield from each.modules()


def check_averages(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse an average over buffers that cannot take masks, before it fails at the first update after a split.

    Raises:
        MisconfigurationException: Naming the callback and what to pass instead.
    """
    holders = [(type(callback).__name__, vars(callback).values()) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    for name, values in [*holders, (type(pl_module).__name__, pl_module.modules())]:
        for value in values:
            if isinstance(value, AveragedModel) and value.use_buffers and not _keeps_masks(value):
                raise MisconfigurationException(
                    f"{name} averages buffers by a function that cannot take the bool masks of a split: pass "
                    "`use_buffers=False`, which copies buffers from the module."
                )


def _keeps_masks(average: AveragedModel) -> bool:
    """Whether True stays True when two equal bool buffers are averaged: torch subtracts them for a plain mean."""
    probe = nn.Linear(1, 1)
    probe.register_buffer("mask", torch.ones(1, dtype=torch.bool))
    trial = AveragedModel(probe, avg_fn=average.avg_fn, multi_avg_fn=average.multi_avg_fn, use_buffers=True)
    try:
        for _ in range(2):
            trial.update_parameters(probe)
    except RuntimeError:
        return False
    return bool(trial.module.mask)
