"""Lightning's ModelPruning next to a split: it works after a split, or is refused before training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.sites import Site


def check_pruning(trainer: pl.Trainer, pl_module: nn.Module, split_epoch: int) -> None:
    """Refuse a ModelPruning that would put narrow weights back, or prune all layers before the split.

    A layer that torch's prune holds has no weight of its own, so that it cannot be split.

    Args:
        trainer: Its callbacks are looked at.
        pl_module: The module that is going to be split.
        split_epoch: Epoch of the first split; 0 where it is not known.

    Raises:
        MisconfigurationException: Naming the argument and what to pass.

    Example:
        >>> check_pruning(pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), nn.Linear(4, 2), 1)
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if not _is_pruning(callback):
            continue
        pruning: Any = callback
        if pruning._use_lottery_ticket_hypothesis:
            raise MisconfigurationException(
                "`ModelPruning(use_lottery_ticket_hypothesis=True)` puts back the weights from the start of training, "
                "which a split makes wider; pass `use_lottery_ticket_hypothesis=False`, or leave out one of the two "
                "callbacks."
            )
        first = next((epoch for epoch in range(max(split_epoch, 1)) if _applies(pruning, epoch)), None)
        if first is not None and _prunes_all(pruning, pl_module):
            raise MisconfigurationException(
                f"ModelPruning prunes every layer at the end of epoch {first}, before the first split, and a layer "
                "that torch prunes cannot be split; prune after it, as with "
                f"`apply_pruning=lambda epoch: epoch >= {max(split_epoch, 1)}`."
            )


def check_pruned_sites(
    trainer: pl.Trainer, pl_module: nn.Module, sites: Sequence[Site], split_epoch: int, named: Collection[str] = ()
) -> None:
    """Refuse a ModelPruning that prunes all sites before their split, or one that was asked for by name.

    Args:
        trainer: Its callbacks are looked at.
        pl_module: The module that is going to be split.
        sites: The sites that are going to be split.
        split_epoch: Epoch of the first split; 0 where it is not known.
        named: Names of sites that were asked for.

    Raises:
        MisconfigurationException: Naming the layer and what to pass.

    Example:
        >>> check_pruned_sites(pl.Trainer(logger=False, accelerator="cpu"), nn.Linear(4, 2), [], 1)
    """
    names = {id(module): name for name, module in pl_module.named_modules()}
    for pruning in (each for each in trainer.callbacks if _is_pruning(each)):  # type: ignore[attr-defined]
        first = next((epoch for epoch in range(split_epoch) if _applies(pruning, epoch)), None)
        chosen = pruning._parameters_to_prune or ()
        pruned = {f"{names.get(id(module), '')}.{name}".lstrip(".") for module, name in chosen}
        hit = {site.name: sorted(pruned.intersection(site.parameters())) for site in sites}
        met = [name for name, found in hit.items() if found]
        if first is not None and met and (len(met) == len(sites) or not set(met).isdisjoint(named)):
            raise MisconfigurationException(
                f"ModelPruning prunes `{hit[met[0]][0]}` at the end of epoch {first}, before the split of {met[0]}, "
                "and a layer that torch prunes cannot be split; prune after it, as with "
                f"`apply_pruning=lambda epoch: epoch >= {split_epoch}`, or split other sites."
            )


def _is_pruning(callback: Any) -> bool:
    return any(kind.__name__ == "ModelPruning" for kind in type(callback).__mro__)


def _applies(pruning: Any, epoch: int) -> bool:
    applies = pruning._apply_pruning
    return bool(applies(epoch) if callable(applies) else applies)


def _prunes_all(pruning: Any, pl_module: nn.Module) -> bool:
    """Whether the weights of all linear layers and convolutions are pruned."""
    pruned = {id(module) for module, name in pruning._parameters_to_prune or () if name == "weight"}
    return all(id(module) in pruned for module in pl_module.modules() if isinstance(module, nn.Linear | _ConvNd))
