"""Partitions that a study fits to its data, or to the network at the moment of the split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.partitions import (
    Affinity,
    Clause,
    FromData,
    Partition,
    input_affinity,
    register_partition,
    resolve_partition,
)

if TYPE_CHECKING:
    from studies.task import Task

SAMPLES = 4096
"""At most as many training samples tell which inputs belong together."""


@runtime_checkable
class FromNetwork(Protocol):
    """A partition that depends on the network which is split."""

    def of(self, network: nn.Module, task: Task) -> Partition:
        """The partition of the inputs of the first layer.

        Args:
            network: As it is just before the split.
            task: Its data.
        """


@dataclass(frozen=True)
class Coactivation:
    """Correlated inputs go to the same child; it looks at no targets."""

    def of(self, network: nn.Module, task: Task) -> Partition:
        """See :class:`FromNetwork`."""
        inputs, _ = task.train
        return _affinity(inputs, torch.ones(len(inputs), 1))

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """Raise, as it has seen no network."""
        return _unfitted(self)


@dataclass(frozen=True)
class ResidualInteraction:
    """Inputs go to the same child whose product correlates with the residuals of the network.

    :class:`fpe_lightning.partitions.Interaction` does the same with the shares of the classes in place of the
    network's outputs.
    """

    def of(self, network: nn.Module, task: Task) -> Partition:
        """See :class:`FromNetwork`."""
        return _affinity(task.train[0], task.residuals(network))

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """Raise, as it has seen no network."""
        return _unfitted(self)


def _affinity(inputs: Tensor, weights: Tensor) -> Affinity:
    """The partition by products of inputs, weighted sample by sample; many inputs make restarts slow and needless."""
    every = -(-len(inputs) // SAMPLES)
    return Affinity(input_affinity(inputs[::every], weights[::every]), restarts=8 if inputs.shape[1] <= 64 else 1)


def _unfitted(partition: object) -> Tensor:
    raise ValueError(f"{partition} depends on a network: call the result of its `of(network, task)`.")


def reads_rows(partition: str | Partition) -> bool:
    """Whether a partition looks at single inputs of the first layer, which have to mean something.

    Example:
        >>> reads_rows("random"), reads_rows("clause"), reads_rows(Coactivation())
        (False, True, True)
    """
    return isinstance(resolve_partition(partition), (FromNetwork, FromData, Clause))


def fitted(partition: str | Partition, task: Task, network: nn.Module) -> Partition:
    """A partition that is ready to be called.

    Args:
        partition: Any; a partition by clauses takes those of the task where it has none.
        task: Samples, and the clauses where they are known.
        network: As it is just before the split.
    """
    found = resolve_partition(partition)
    if isinstance(found, FromNetwork):
        return found.of(network, task)
    return resolve_partition(fpe.Expansion(partition=found).fit(task.train, task.groups).partition)


register_partition("coactivation", Coactivation())
register_partition("residual_interaction", ResidualInteraction())
