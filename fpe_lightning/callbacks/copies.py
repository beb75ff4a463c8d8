"""Averages of the weights that other callbacks hold, which have to be split together with the module."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn


def copies_of(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[nn.Module]:
    """Every copy of the module that a callback of the Trainer keeps, such as those of EMA and SWA callbacks.

    A copy is a module of the LightningModule's own class, held in an attribute of a callback, directly or inside of
    another module (an ``AveragedModel``).
    """
    held = [value for callback in trainer.callbacks for value in vars(callback).values()]  # type: ignore[attr-defined]
    inside = [module for value in held if isinstance(value, nn.Module) for module in value.modules()]
    copies = [module for module in inside if type(module) is type(pl_module) and module is not pl_module]
    return list(dict.fromkeys(copies))
