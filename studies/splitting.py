"""How an arm splits a trained network."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.expansion.config import BaseExpansion
from fpe_lightning.sparse.masked import mask_of
from studies.partitions import fitted, reads_rows

if TYPE_CHECKING:
    from studies.arms import Split
    from studies.task import Task


def split(
    arm: Split,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    sites: list[fpe.Site],
    alpha: int,
    seed: int,
) -> None:
    """Split the neurons of a trained network in place, as the arm says.

    Args:
        arm: The arm.
        network: A dense network.
        optimizer: Of the network.
        task: Samples for partitions and pruning rules that need them.
        sites: The sites that are split.
        alpha: Children of each neuron, where the arm does not say it.
        seed: Of masks and drawn weights.

    Raises:
        ValueError: If the network has diverged, or too few weights are left for the copies.
    """
    expansion = arm.expansion_of(alpha, seed)
    if arm.redraw:
        expansion = replace(expansion, optimizer_state="reset")
    expand(network, expansion, optimizer, task, sites)
    if arm.redraw:
        generator = Generator().manual_seed(seed)
        for name in dict.fromkeys(producer.parameter for site in sites for producer in site.producers):
            redraw_(network.get_submodule(name.rpartition(".")[0]), generator)


def expand(
    network: nn.Module,
    expansion: BaseExpansion,
    optimizer: torch.optim.Optimizer,
    task: Task,
    sites: list[fpe.Site],
) -> None:
    """Expand a network in place.

    A partition that is fitted to samples is that of the first site; deeper ones are split at random.

    Raises:
        ValueError: If the network has diverged, or too few weights are left for the copies.
    """
    ready = {"*": expansion}
    if isinstance(expansion, fpe.Expansion) and reads_rows(expansion.partition):
        first = replace(expansion, partition=fitted(expansion.partition, task, network))
        ready = {sites[0].name: first, "*": replace(expansion, partition="random")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fpe.ExpansionWarning)  # the table of a study shows the cost of a split
        fpe.expand(network, ready, sites=sites, optimizer=optimizer, data=task.train)


@torch.no_grad()
def redraw_(layer: nn.Module, generator: Generator) -> None:
    """Draw the weights of a masked layer again: from U(-s, s), ``s = 1 / sqrt(fan-in)`` of each neuron, in place."""
    alive = alive_of(layer)
    fan_in = alive.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (alive.dim() - 1))
    weight = layer.get_parameter("weight")
    weight.copy_((torch.rand(alive.shape, generator=generator) * 2 - 1) * fan_in.rsqrt() * alive)


def alive_of(layer: nn.Module) -> Tensor:
    """The weights of a layer that may be other than zero, bool, of the shape of its ``weight``.

    Example:
        >>> int(alive_of(torch.nn.Linear(3, 2)).sum())
        6
    """
    mask = mask_of(layer)
    return torch.ones_like(layer.get_parameter("weight"), dtype=torch.bool) if mask is None else mask
