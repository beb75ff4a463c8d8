"""How an arm splits a trained network."""

from __future__ import annotations

import warnings

import torch
from fpe_lightning.partitions.builtin import Partition
from torch import Generator, Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.expansion.split_site import ExpansionWarning
from fpe_lightning.partitions.interaction import affinity_partition, input_affinity
from fpe_lightning.pruning.discriminant import DiscriminantRefit
from fpe_lightning.sparse.masked import mask_of
from studies.arms import Arm
from studies.task import Task

SAMPLES = 4096
"""At most as many training samples tell which inputs belong together."""
FROM_ROWS = ("interaction", "coactivation")
"""Partitions that are worked out from the rows of numbers that the first layer reads."""


def partition_of(name: str, task: Task, network: nn.Module, inputs: Tensor) -> str | Partition:
    """A partition that is worked out from data where its name says so, else the name.

    Args:
        name: ``"interaction"`` or ``"coactivation"`` (see :mod:`fpe_lightning.partitions.interaction`), or what
            ``expand`` takes.
        task: The data.
        network: Its residuals weigh the products of inputs for ``"interaction"``; ones do for ``"coactivation"``,
            which looks at no targets.
        inputs: ``(n, inputs)`` that the layer in question sees of the training samples.
    """
    if name in FROM_ROWS:
        every = -(-len(inputs) // SAMPLES)
        weights = task.residuals(network) if name == "interaction" else torch.ones(len(inputs), 1)
        affinity = input_affinity(inputs[::every], weights[::every])
        return affinity_partition(affinity, restarts=8 if inputs.shape[1] <= 64 else 1)
    return name


def split(
    arm: Arm,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    sites: list[fpe.Site],
    alpha: int,
    seed: int,
) -> None:
    """Split the neurons of a trained network in place, as the arm says.

    A partition that is worked out from data is that of the first hidden layer; deeper ones are split at random.

    Raises:
        ValueError: If the network has diverged, or too little is left to make room for the copies.
    """
    name = arm.partition if arm.groups is None else f"{arm.partition}:{arm.groups}"
    found = partition_of(name, task, network, task.train[0])
    rules = [found, *(["random"] * (len(sites) - 1) if callable(found) and len(sites) > 1 else [])]
    stages = [sites] if len(rules) == 1 else [[site] for site in sites]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExpansionWarning)  # a study shows what a split costs in its table
        for rule, stage in zip(rules, stages, strict=True):
            fpe.expand(
                network,
                alpha=alpha,
                partition=rule,
                groups=task.groups if rule == "clause" else None,
                sites=stage,
                budget=arm.budget,
                seed=seed,
                optimizer=optimizer,
                optimizer_state="reset" if arm.redraw else arm.optimizer_state,
            )
    if arm.redraw:
        generator = Generator().manual_seed(seed)
        for name in dict.fromkeys(producer.parameter for site in sites for producer in site.producers):
            redraw_(network.get_submodule(name.rpartition(".")[0]), generator)


def split_again(
    arm: Arm, network: nn.Module, optimizer: torch.optim.Optimizer, task: Task, sites: list[fpe.Site], seed: int
) -> None:
    """Split the neurons of a network of one hidden layer once more, each in two, and refit what reads them, in place.

    Raises:
        ValueError: If the network has diverged, or too little is left to make room for the copies.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExpansionWarning)  # a study shows what a split costs in its table
        fpe.expand(
            network,
            alpha=2,
            partition=partition_of(arm.partition, task, network, task.train[0]),
            sites=sites,
            budget=DiscriminantRefit(*task.train),
            seed=seed,
            optimizer=optimizer,
            optimizer_state="reset",
        )


@torch.no_grad()
def redraw_(layer: nn.Module, generator: Generator) -> None:
    """Draw the weights of a masked layer anew from U(-s, s) with ``s = 1 / sqrt(fan-in)`` of each neuron, in place."""
    alive = alive_of(layer)
    fan_in = alive.flatten(1).sum(1).clamp_min(1).view(-1, *[1] * (alive.dim() - 1))
    weight = layer.get_parameter("weight")
    weight.copy_((torch.rand(alive.shape, generator=generator) * 2 - 1) * fan_in.rsqrt() * alive)


def alive_of(layer: nn.Module) -> Tensor:
    """Which weights of a layer may be other than zero, bool, of the shape of its ``weight``.

    Example:
        >>> int(alive_of(torch.nn.Linear(3, 2)).sum())
        6
    """
    mask = mask_of(layer)
    return torch.ones_like(layer.get_parameter("weight"), dtype=torch.bool) if mask is None else mask
