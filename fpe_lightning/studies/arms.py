"""What is compared: networks of equally many non-zeros that differ in structure alone."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

import fpe_lightning as fpe
from fpe_lightning.data.boolean import DNFTask
from fpe_lightning.expansion.affinity import affinity_partition, input_affinity
from fpe_lightning.expansion.partition import Partition, random_partition
from fpe_lightning.networks import MLP
from fpe_lightning.sparse.masked import mask_of
from fpe_lightning.studies.errors import StudyError


@torch.no_grad()
def residuals(task: DNFTask, network: MLP) -> Tensor:
    """Targets minus predicted probabilities of the training samples, ``(n, 1)``."""
    inputs, truth = task.train
    return truth.float().unsqueeze(1) - network(inputs).sigmoid()


def ones(task: DNFTask, network: MLP) -> Tensor:
    """A column of ones for the training samples, ``(n, 1)``: no targets are looked at."""
    return torch.ones(len(task.train[0]), 1)


AT_SPLIT: dict[str, Callable[[DNFTask, MLP], Tensor]] = {"coactivation": ones, "interaction": residuals}
"""What weighs the products of inputs, for partitions that are worked out from data at the split."""


@dataclass(frozen=True)
class Arm:
    """One way to spend the non-zeros.

    Attributes:
        kind: ``"dense"``, ``"split"`` (a dense network whose neurons are split), or ``"wide"`` (wide and sparse from
            scratch).
        partition: For ``"split"``: a partition of ``expand``; ``"grouped"`` (each of four groups of neurons shares a
            random one); ``"interaction"`` or ``"coactivation"`` (see :mod:`fpe_lightning.expansion.affinity`).
        budget: For ``"split"``: as for ``expand``.
        split: For ``"split"``: the epoch of the split; None is the regime's.
        redraw: For ``"split"``: draw the incoming weights of the children anew under their masks.
        optimizer_state: For ``"split"``: as for ``expand``.
        allocation: For ``"wide"``: as for ``WideSparseMLP``.
    """

    kind: str
    partition: str = "random"
    budget: str = "total"
    split: int | None = None
    redraw: bool = False
    optimizer_state: str = "follow"
    allocation: str = "hidden"


ARMS: dict[str, Arm] = {
    "dense": Arm("dense"),
    "random": Arm("split"),
    "shared": Arm("split", "shared"),
    "feature": Arm("split", "feature"),
    "clause": Arm("split", "clause"),
    "overlapping": Arm("split", "overlapping"),
    "wide_sparse": Arm("wide"),
    "wide_sparse_even": Arm("wide", allocation="even"),
    "constant_fan_in": Arm("wide", allocation="fan_in"),
    "random_at_0": Arm("split", split=0),
    "random_at_100": Arm("split", split=100),
    "random_at_300": Arm("split", split=300),
    "random_incoming": Arm("split", budget="incoming"),
    "random_redraw": Arm("split", redraw=True),
    "random_reset": Arm("split", optimizer_state="reset"),
    "grouped": Arm("split", "grouped"),
    "coactivation": Arm("split", "coactivation"),
    "interaction": Arm("split", "interaction"),
    "interaction_at_0": Arm("split", "interaction", split=0),
    "interaction_at_100": Arm("split", "interaction", split=100),
    "interaction_at_300": Arm("split", "interaction", split=300),
    "interaction_redraw": Arm("split", "interaction", redraw=True),
}
"""Arms by name. Those that need the clauses ("clause") know more than a network can."""

BASELINES = ("dense", "wide_sparse")
"""The arms that every other one is compared with."""


def arms_named(names: list[str]) -> dict[str, Arm]:
    """Look arms up.

    Raises:
        StudyError: If one does not exist.

    Example:
        >>> arms_named(["dense"])["dense"].kind
        'dense'
    """
    for name in names:
        if name not in ARMS:
            nearest = difflib.get_close_matches(name, ARMS, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise StudyError(f"Unknown arm {name!r}.{hint} Known: {', '.join(ARMS)}.")
    return {name: ARMS[name] for name in names}


def grouped_partition(groups: int) -> Partition:
    """Neurons are dealt to groups, and each group shares one random balanced partition.

    Example:
        >>> weight, generator = torch.randn(4, 8, 1), torch.Generator().manual_seed(0)
        >>> child = grouped_partition(2)(weight, torch.ones(4, 8, dtype=torch.bool), 2, generator)
        >>> torch.equal(child[0], child[2]), torch.equal(child[0], child[1])
        (True, False)
    """

    def partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        several = random_partition(weight[:groups], alive[:groups], alpha, generator)
        return several[torch.arange(len(alive)) % groups]

    return partition


def split(
    arm: Arm,
    network: MLP,
    optimizer: torch.optim.Optimizer,
    task: DNFTask,
    sites: list[fpe.Site],
    alpha: int,
    seed: int,
) -> None:
    """Split the neurons of a trained network in place, as the arm says.

    Raises:
        ValueError: If the network has diverged, or too little is left to make room for the copies.
    """
    partition: str | Partition = arm.partition
    groups = task.groups if partition == "clause" else None
    if partition == "grouped":
        partition = grouped_partition(4)
    elif arm.partition in AT_SPLIT:
        partition = affinity_partition(input_affinity(task.train[0], AT_SPLIT[arm.partition](task, network)))
    fpe.expand(
        network,
        alpha=alpha,
        partition=partition,
        groups=groups,
        sites=sites,
        budget=arm.budget,
        seed=seed,
        optimizer=optimizer,
        optimizer_state="reset" if arm.redraw else arm.optimizer_state,
    )
    if arm.redraw:
        redraw_(network.linear_layers()[0], Generator().manual_seed(seed))


@torch.no_grad()
def redraw_(layer: torch.nn.Linear, generator: Generator) -> None:
    """Draw the weights of a masked layer anew from U(-s, s) with ``s = 1 / sqrt(fan-in)`` of each neuron, in place."""
    mask = mask_of(layer)
    alive = torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask
    bound = alive.sum(1, keepdim=True).clamp_min(1).rsqrt()
    layer.weight.copy_((torch.rand(alive.shape, generator=generator) * 2 - 1) * bound * alive)
