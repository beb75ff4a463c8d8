"""Partitions that several neurons share, so that a widened weight consists of dense blocks (``layout="grouped"``).

Neurons are cut into consecutive groups of one size. With one group all neurons share one partition; with as many groups
as neurons each has its own (the paper's rule). A few groups lie between, in accuracy where single inputs have to meet
in one child (Boolean clauses) and in speed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fpe_lightning.partitions.balanced import balanced
from fpe_lightning.partitions.partition import Partition

CHUNK = 64
"""Neurons that are compared at a time."""


@dataclass(frozen=True)
class SharedPartition(Partition, ABC):
    """A partition that depends on the number of inputs and on the group that a neuron belongs to, and on nothing else.

    Attributes:
        groups: Number of groups of neurons; it has to divide the number of neurons.
    """

    groups: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.groups, int) or isinstance(self.groups, bool) or self.groups < 1:
            raise ValueError(
                f"`groups`, the number of groups of neurons that share a partition, has to be an integer of at least "
                f"1, found {self.groups!r}."
            )

    @abstractmethod
    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""

    def by_group(self, inputs: int, alpha: int, generator: Generator) -> Tensor:
        """The partition of each group of a dense layer, bool ``(groups, alpha, inputs)``.

        Example:
            >>> Contiguous(groups=2).by_group(4, 2, torch.Generator()).int().tolist()
            [[[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 1, 1, 0], [1, 0, 0, 1]]]
        """
        # One neuron stands for each group.
        alive = torch.ones(self.groups, inputs, dtype=torch.bool)
        child = self(alive.unsqueeze(2), alive, alpha, generator)
        return child.unsqueeze(1) == torch.arange(alpha).view(1, -1, 1)


@dataclass(frozen=True)
class Shared(SharedPartition):
    """Each group of neurons draws one random balanced partition.

    Args:
        groups: Number of groups; it has to divide the number of neurons.

    Raises:
        ValueError: If there is no group.

    Example:
        >>> weight, generator = torch.randn(4, 8, 1), torch.Generator().manual_seed(0)
        >>> assignment = Shared(groups=2)(weight, torch.ones(4, 8, dtype=torch.bool), 2, generator)
        >>> len(assignment.unique(dim=0)), bool((assignment[0] == assignment[1]).all())
        (2, True)
    """

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        reached, size = _reached(alive, self.groups)
        # One draw for each group; its neurons take it over.
        keys = torch.rand(self.groups, alive.shape[1], generator=generator)
        return balanced(keys.repeat_interleave(size, dim=0), reached, alpha)


@dataclass(frozen=True)
class Contiguous(SharedPartition):
    """Each child inherits consecutive inputs, so that nothing has to be gathered to compute it. It draws nothing.

    The cuts of each group of neurons are shifted by an equal step, so that inputs which one group separates meet in
    another. The numbers of its children are shifted too: children of one number read other inputs in each group.
    Meant for inputs without an order, such as embeddings; neighbouring pixels or tokens stay together.

    Args:
        groups: Number of groups; it has to divide the number of neurons.

    Raises:
        ValueError: If there is no group.

    Example:
        >>> weight, generator = torch.randn(2, 8, 1), torch.Generator().manual_seed(0)
        >>> Contiguous(groups=2)(weight, torch.ones(2, 8, dtype=torch.bool), 2, generator)
        tensor([[0, 0, 0, 0, 1, 1, 1, 1],
                [1, 1, 0, 0, 0, 0, 1, 1]])
    """

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        reached, size = _reached(alive, self.groups)
        # The rank of each input among those that are left, moved on by a share of a stretch in each group.
        count = reached.sum(1, keepdim=True).clamp(min=1)
        rank = (reached.cumsum(1) - 1).clamp(min=0)
        group = torch.arange(len(alive)).unsqueeze(1) // size
        shifted = (rank + group * count // (alpha * self.groups)) % count
        return (shifted * alpha // count + group) % alpha


def group_size(masks: Tensor) -> int:
    """Neurons in each of the largest equal consecutive groups that share a partition.

    Neurons that miss some inputs share the partition of a neighbour if they agree on the inputs that both have, at
    least half of either's.

    Args:
        masks: Bool ``(neurons, alpha, inputs)``, as from ``children_masks``.

    Example:
        >>> group_size(torch.eye(2, dtype=torch.bool).expand(6, 2, 2))
        6
    """
    # A boundary in a place that a size does not divide rules that size out.
    size = len(masks)
    for first in range(0, len(masks) - 1, CHUNK):
        size = math.gcd(size, *(first + 1 + boundary for boundary in _boundaries(masks[first : first + CHUNK + 1])))
        if size == 1:  # most partitions say so at once
            break
    return size


def _boundaries(masks: Tensor) -> list[int]:
    """The neurons whose partition is not that of the next one."""
    # Two neighbours agree if no input that both read goes to different children.
    alive = masks.any(1)
    both = alive[1:] & alive[:-1]
    differ = ((masks[1:] != masks[:-1]) & both.unsqueeze(1)).flatten(1).any(1)
    count = alive.count_nonzero(1)
    # Too little in common to call it agreement.
    apart = 2 * both.count_nonzero(1) < torch.maximum(count[1:], count[:-1])
    return (differ | apart).nonzero().squeeze(1).tolist()


def _reached(alive: Tensor, groups: int) -> tuple[Tensor, int]:
    """For each neuron the inputs that are assigned, bool ``(neurons, inputs)``, and the number of neurons in a group.

    Inputs that single neurons miss are assigned like all others. But where stretches of neurons read different
    inputs, as after an earlier split, each stretch assigns its own.
    """
    neurons, inputs = alive.shape
    if neurons % groups:
        divisors = ", ".join(str(n) for n in range(1, neurons + 1) if neurons % n == 0)
        raise ValueError(f"{groups} groups of one size cannot be made of {neurons} neurons; use one of {divisors}.")
    size = neurons // groups
    # Few changes from row to row are the mark of an earlier split; many are single pruned weights.
    stretches = 1 + int((alive[1:] != alive[:-1]).any(1).sum())
    if 2 * stretches <= neurons:
        return alive, size
    return alive.view(groups, size, inputs).any(1).repeat_interleave(size, dim=0), size
