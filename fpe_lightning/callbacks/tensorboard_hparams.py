"""The columns of TensorBoard's tab *HParams*: the same for all runs, so that a table compares them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from fpe_lightning.callbacks.expansion import ExpansionCallback
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.sparse.model_masks import count_nonzeros


def columns_of(trainer: Trainer, pl_module: LightningModule) -> dict[str, float | str]:
    """The columns that every run has; a run without a split has alpha 1.

    TensorBoard sorts columns by name and shows the first five by default, so the important names sort first.

    Args:
        trainer: The trainer, after it created the optimizers.
        pl_module: The module; its ``network``, if any, gives the first column.

    Returns:
        Numbers and short texts by column name.
    """
    expansions = [each for each in trainer.callbacks if isinstance(each, ExpansionCallback)]  # type: ignore[attr-defined]
    ways = [way for each in expansions for way in each.expansions()]
    optimizer = trainer.optimizers[0] if trainer.optimizers else None

    def of_splits(values: list[Any], without: float | str) -> float | str:
        if len(values) == 1 and isinstance(values[0], (int, str)):
            return values[0]
        return ", ".join(_named(value) for value in values) if values else without

    return {
        "network": type(getattr(pl_module, "network", pl_module)).__name__,
        "alpha": of_splits([each.alpha for each in ways], 1),
        "split at": of_splits([_moment(each) for each in expansions], "never"),
        "split partition": of_splits([getattr(each, "partition", "by shape") for each in ways], "none"),
        "split pruning": of_splits([getattr(each, "prune", "by shape") for each in ways], "none"),
        "optimizer": type(optimizer).__name__ if optimizer else "none",
        "lr": float(optimizer.param_groups[0]["lr"]) if optimizer else math.nan,
        "max_epochs": float(trainer.max_epochs or -1),
        "seed": os.environ.get("PL_GLOBAL_SEED", "none"),
        "non-zero parameters": count_nonzeros(pl_module),
    }


def chosen_hparams(hparams: Mapping[str, Any], patterns: Sequence[str]) -> dict[str, float | str]:
    """The hyper-parameters that match the patterns, each under the last part of its name.

    Args:
        hparams: Hyper-parameters of the module, nested or not.
        patterns: Names or globs, nested names joined by ``/``.

    Returns:
        Values by column name.

    Raises:
        MisconfigurationException: If a pattern matches no hyper-parameter.

    Example:
        >>> chosen_hparams({"network": {"init_args": {"hidden": 8, "bias": True}}}, ["network/*/hidden"])
        {'hidden': 8}
    """
    flat = dict(_flattened(hparams))
    found: dict[str, float | str] = {}
    for each in patterns:
        names = [name for name in flat if fnmatchcase(name, each)]
        if not names:
            raise MisconfigurationException(
                f"`hparams` of `TensorBoardReport` asks for {each!r}, which is no hyper-parameter of the module; it "
                f"has {', '.join(map(repr, flat)) or 'none'}."
            )
        for name in names:
            value = flat[name]
            found[name.rpartition("/")[2]] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        each
        for name, value in values.items()
        for each in (
            _flattened(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
        )
    ]


def _moment(expansion: ExpansionCallback) -> str:
    """The moment of a split, in words."""
    schedule = expansion.schedule
    if schedule.trigger is not None:
        return type(schedule.trigger).__name__
    return f"{schedule.kind} {', '.join(map(str, schedule.moments))}"


def _named(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)
