"""Partitions that each neuron draws for itself: the paper's rule, its 2:4 variant, and the overlapping control."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fpe_lightning.partitions.balanced import balanced
from fpe_lightning.partitions.partition import Partition


@dataclass(frozen=True)
class Random(Partition):
    """Each neuron draws its own random partition, balanced to within one input (the paper's rule).

    Example:
        >>> weight, generator = torch.randn(3, 8, 1), torch.Generator().manual_seed(0)
        >>> Random()(weight, torch.ones(3, 8, dtype=torch.bool), 2, generator).sum(1)
        tensor([4, 4, 4])
    """

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        return balanced(torch.rand(alive.shape, generator=generator), alive, alpha)


@dataclass(frozen=True)
class SemiStructured(Partition):
    """Each run of 4 consecutive inputs is split 2 + 2, so that adjacent children form 2:4 tiles in both directions.

    The call raises ValueError if ``alpha`` is not 2, or the number of inputs is not a multiple of 4.

    Example:
        >>> weight, generator = torch.randn(3, 8, 1), torch.Generator().manual_seed(0)
        >>> SemiStructured()(weight, torch.ones(3, 8, dtype=torch.bool), 2, generator).view(3, 2, 4).sum(-1)
        tensor([[2, 2],
                [2, 2],
                [2, 2]])
    """

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        neurons, inputs = alive.shape
        if alpha != 2 or inputs % 4:
            raise ValueError(
                'The partition "semi_structured" splits each run of 4 inputs 2 + 2: it needs alpha=2 and a multiple '
                f'of 4 inputs, found alpha={alpha} and {inputs} inputs; use "random" or "shared" here.'
            )
        keys = torch.rand(neurons * inputs // 4, 4, generator=generator)
        return balanced(keys, torch.ones_like(keys, dtype=torch.bool), 2).view(neurons, inputs)


@dataclass(frozen=True)
class Overlapping(Partition):
    """The paper's control: every child draws its own inputs, so that children share some and miss others.

    It returns bool ``(neurons, alpha, inputs)`` with exactly as many entries per neuron as a partition has.

    Example:
        >>> weight, generator = torch.randn(3, 8, 1), torch.Generator().manual_seed(0)
        >>> Overlapping()(weight, torch.ones(3, 8, dtype=torch.bool), 2, generator).sum((1, 2))
        tensor([8, 8, 8])
    """

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        draws = [Random()(weight, alive, alpha, generator) == child for child in range(alpha)]
        return torch.stack(draws, dim=1) & alive.unsqueeze(1)
