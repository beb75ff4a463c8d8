"""Partitions that several neurons share, so that a widened weight consists of dense blocks (``layout="grouped"``).

Neurons are cut into consecutive groups of one size. With one group all neurons share one partition; with as many groups
as neurons each has its own (the paper's rule). A few groups lie between, in accuracy where single inputs have to meet
in one child (Boolean clauses) and in speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fpe_lightning.partitions.balanced import deal

CHUNK = 64
"""Neurons that are compared at a time."""


@dataclass(frozen=True)
class SharedPartition:
    """A partition that depends on the number of inputs, and on the group that a neuron belongs to, alone.

    Attributes:
        neuron_groups: Groups of neurons.
        rule: A partition of the usual signature.
    """

    neuron_groups: int
    rule: Callable[[Tensor, Tensor, int, Generator], Tensor]

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """Which child inherits which input; see :mod:`fpe_lightning.partitions.builtin`."""
        return self.rule(weight, alive, alpha, generator)

    def by_group(self, inputs: int, alpha: int, generator: Generator) -> Tensor:
        """The partition of each group of a dense layer, bool ``(neuron_groups, alpha, inputs)``.

        Example:
            >>> by_groups("contiguous:2").by_group(4, 2, torch.Generator()).int().tolist()
            [[[1, 1, 0, 0], [0, 0, 1, 1]], [[0, 1, 1, 0], [1, 0, 0, 1]]]
        """
        alive = torch.ones(self.neuron_groups, inputs, dtype=torch.bool)
        child = self.rule(alive.unsqueeze(2), alive, alpha, generator)
        return child.unsqueeze(1) == torch.arange(alpha).view(1, -1, 1)


def by_groups(name: str) -> SharedPartition:
    """The partition that ``"shared:<neuron_groups>"`` or ``"contiguous:<neuron_groups>"`` stands for.

    Raises:
        ValueError: If the number of groups is no integer of at least 1.

    Example:
        >>> partition = by_groups("contiguous:1")
        >>> partition(torch.randn(1, 4, 1), torch.ones(1, 4, dtype=torch.bool), 2, torch.Generator())
        tensor([[0, 0, 1, 1]])
    """
    kind, _, count = name.partition(":")
    if not count.isdecimal():
        raise ValueError(f'The partition {name!r} has to name a number of neuron groups, as in "{kind}:8".')
    return {"shared": shared_by_groups, "contiguous": contiguous_by_groups}[kind](int(count))


def shared_by_groups(neuron_groups: int) -> SharedPartition:
    """Each group of neurons draws one random balanced partition; by name ``"shared:<neuron_groups>"``.

    Args:
        neuron_groups: Number of groups; it has to divide the number of neurons.

    Returns:
        A partition.

    Raises:
        ValueError: If there is no group.

    Example:
        >>> weight, generator = torch.randn(4, 8, 1), torch.Generator().manual_seed(0)
        >>> assignment = shared_by_groups(2)(weight, torch.ones(4, 8, dtype=torch.bool), 2, generator)
        >>> len(assignment.unique(dim=0)), bool((assignment[0] == assignment[1]).all())
        (2, True)
    """
    _check(neuron_groups)

    def partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        reached, size = _reached(alive, neuron_groups)
        keys = torch.rand(neuron_groups, alive.shape[1], generator=generator)
        return deal(keys.repeat_interleave(size, dim=0), reached, alpha)

    return SharedPartition(neuron_groups, partition)


def contiguous_by_groups(neuron_groups: int) -> SharedPartition:
    """Each child inherits consecutive inputs; by name ``"contiguous"`` or ``"contiguous:<neuron_groups>"``.

    Nothing has to be gathered to compute it. The cuts of each group of neurons are moved on by an equal step, so that
    inputs which one group separates meet in another, and so do the numbers of its children: those of one number read
    other inputs in each group. Meant for inputs without an order, such as embeddings; neighbouring pixels or tokens
    stay together.

    Args:
        neuron_groups: Number of groups; it has to divide the number of neurons.

    Returns:
        A partition; it draws nothing.

    Raises:
        ValueError: If there is no group.

    Example:
        >>> weight, generator = torch.randn(2, 8, 1), torch.Generator().manual_seed(0)
        >>> contiguous_by_groups(2)(weight, torch.ones(2, 8, dtype=torch.bool), 2, generator)
        tensor([[0, 0, 0, 0, 1, 1, 1, 1],
                [1, 1, 0, 0, 0, 0, 1, 1]])
    """
    _check(neuron_groups)

    def partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        reached, size = _reached(alive, neuron_groups)
        count = reached.sum(1, keepdim=True).clamp(min=1)
        rank = (reached.cumsum(1) - 1).clamp(min=0)
        group = torch.arange(len(alive)).unsqueeze(1) // size
        moved = (rank + group * count // (alpha * neuron_groups)) % count
        return (moved * alpha // count + group) % alpha

    return SharedPartition(neuron_groups, partition)


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
    size = len(masks)
    for first in range(0, len(masks) - 1, CHUNK):
        size = math.gcd(size, *(first + 1 + boundary for boundary in _boundaries(masks[first : first + CHUNK + 1])))
        if size == 1:  # most partitions say so at once
            break
    return size


def _boundaries(masks: Tensor) -> list[int]:
    """The neurons whose partition is not that of the next one."""
    alive = masks.any(1)
    both = alive[1:] & alive[:-1]
    differ = ((masks[1:] != masks[:-1]) & both.unsqueeze(1)).flatten(1).any(1)
    count = alive.count_nonzero(1)
    apart = 2 * both.count_nonzero(1) < torch.maximum(count[1:], count[:-1])
    return (differ | apart).nonzero().squeeze(1).tolist()


def _check(neuron_groups: int) -> None:
    if not isinstance(neuron_groups, int) or isinstance(neuron_groups, bool) or neuron_groups < 1:
        raise ValueError(f"`neuron_groups` has to be an integer of at least 1, found {neuron_groups!r}.")


def _reached(alive: Tensor, neuron_groups: int) -> tuple[Tensor, int]:
    """For each neuron the inputs that are dealt out, bool ``(neurons, inputs)``, and the number of neurons in a group.

    Inputs that single neurons miss are dealt out like all others. But where stretches of neurons read different
    inputs, as after an earlier split, each stretch deals out its own.
    """
    neurons, inputs = alive.shape
    if neurons % neuron_groups:
        divisors = ", ".join(str(n) for n in range(1, neurons + 1) if neurons % n == 0)
        raise ValueError(
            f"{neuron_groups} groups of one size cannot be made of {neurons} neurons; use one of {divisors}."
        )
    size = neurons // neuron_groups
    stretches = 1 + int((alive[1:] != alive[:-1]).any(1).sum())
    if 2 * stretches <= neurons:
        return alive, size
    return alive.view(neuron_groups, size, inputs).any(1).repeat_interleave(size, dim=0), size
