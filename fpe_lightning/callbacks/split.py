"""One split of a LightningModule, together with all that a run holds of it: optimizers, averages, teachers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from fpe_lightning.callbacks.averages import averages_of, check_averages, holders_of_shadows
from fpe_lightning.callbacks.distributed import splitting
from fpe_lightning.callbacks.fsdp2.strategy import check_fsdp2
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.expansion import BaseExpansion, ExpansionReport, expand
from fpe_lightning.expansion.parts import resolve_averages
from fpe_lightning.expansion.teachers import Teacher, find_teachers, watch
from fpe_lightning.expansion.wrappers import check_holds
from fpe_lightning.sites import Site


@contextmanager
def refused_as_misconfiguration() -> Iterator[None]:
    """Say of refusals that they are about a split."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise MisconfigurationException(f"ExpansionCallback cannot split: {error}") from error


def check_module(
    trainer: pl.Trainer, pl_module: pl.LightningModule, expansions: Sequence[BaseExpansion], averages: Sequence[str]
) -> None:
    """Refuse, before a run, what could not be split in the middle of it.

    Args:
        trainer: The trainer, with its optimizers.
        pl_module: The module.
        expansions: The ways to expand.
        averages: Names of parts that follow another part.

    Raises:
        MisconfigurationException: With the reason.
    """
    check_averages(trainer, pl_module)
    check_fsdp2(trainer, pl_module, [getattr(each, "layout", "masked") for each in expansions])
    with refused_as_misconfiguration():
        find_teachers(pl_module, trainer.optimizers, resolve_averages(pl_module, averages)[0])
        check_holds(pl_module, _optimizers(trainer, pl_module))


def teachers_of(
    trainer: pl.Trainer, pl_module: pl.LightningModule, averages: Sequence[str], watched: Mapping[str, float]
) -> list[Teacher]:
    """The parts of the module that follow another part: named, alike, or changed since training began.

    Args:
        trainer: The trainer, with its optimizers.
        pl_module: The module.
        averages: Names of parts that follow another part.
        watched: What :func:`~fpe_lightning.expansion.teachers.watch` returned when training began.
    """
    # Whatever changed although nothing trains it is updated by somebody: by an average, or by a copy.
    now = watch(pl_module, trainer.optimizers)
    changed = [name for name, value in now.items() if name in watched and value != watched[name]]
    named = resolve_averages(pl_module, averages)[0]
    return find_teachers(pl_module, trainer.optimizers, named, changed)


def split_module(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    expansions: Mapping[str, BaseExpansion],
    sites: Sequence[Site],
    teachers: Sequence[Teacher],
) -> ExpansionReport:
    """Split sites of a module, and of all that follows it.

    Args:
        trainer: The trainer, before a training batch.
        pl_module: The module.
        expansions: How to expand, by names or globs of sites, with the data that they need.
        sites: The sites.
        teachers: The parts of the module that follow another part.

    Raises:
        TypeError: See :func:`~fpe_lightning.expansion.expand.expand`.
        ValueError: See there.
    """
    # Layouts are timed in the precision that steps are computed in.
    timed = any(getattr(each, "layout", None) == "auto" for each in expansions.values())
    precision = trainer.precision_plugin.forward_context() if timed else nullcontext()
    with splitting(trainer, pl_module, sites), precision:
        report = expand(
            pl_module,
            expansions,
            sites=sites,
            optimizer=_optimizers(trainer, pl_module),
            averages=[
                *averages_of(trainer, pl_module),
                *(each.module for each in teachers),
                *holders_of_shadows(trainer, pl_module),
            ],
        )
    # Compiled code is specialised on shapes; without this it would give up after a few splits and run uncompiled.
    torch._dynamo.reset()
    return report


def _optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Optimizer]:
    """The optimizers of the module; one of several may train something else."""
    own = set(pl_module.parameters())
    some = [each for each in trainer.optimizers if any(not own.isdisjoint(g["params"]) for g in each.param_groups)]
    return some or trainer.optimizers


def notify(trainer: pl.Trainer, hook: str, pl_module: pl.LightningModule, argument: Any) -> None:
    """Call a hook of all callbacks that define it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer, pl_module, argument)
