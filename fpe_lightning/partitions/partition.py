"""A partition says which child inherits which input of its parent.

Any callable of the signature of :class:`Partition` is one: the classes of this room are frozen dataclasses whose
instances can be called, and a plain function does as well. A partition changes nothing; only ``expand`` applies it.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Generator, Tensor

from fpe_lightning.registry import Registry

PartitionName: TypeAlias = Literal[
    "random", "shared", "contiguous", "feature", "clause", "interaction", "semi_structured", "overlapping"
]
"""Short names of the partitions that need no argument."""


@runtime_checkable
class Partition(Protocol):
    """Which child inherits which input."""

    # It returns a Tensor. A config's parser would take a class that is named for a tensor's, were that written here.
    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Any:
        """Assign inputs to children.

        Args:
            weight: Floating ``(neurons, inputs, k)``, the incoming weights of every neuron. ``k`` is 1 for a linear
                layer and the number of kernel entries for a convolution, whose neurons and inputs are channels.
            alive: Bool ``(neurons, inputs)``, False where the whole weight is masked already.
            alpha: Number of children of each neuron.
            generator: The only source of randomness.

        Returns:
            int64 ``(neurons, inputs)``, the child ``0 .. alpha - 1`` that inherits each input. Or bool
            ``(neurons, alpha, inputs)``, for a rule that is no partition, such as the overlapping control.
        """


@runtime_checkable
class FromData(Protocol):
    """A partition or a pruning rule that needs training samples before it can be called."""

    @property
    def fitted(self) -> bool:
        """Whether it has seen samples."""

    def fit(self, x: Tensor, y: Tensor) -> Any:
        """Return a copy that is fitted to samples ``(n, inputs)`` and their class numbers ``(n,)``."""


_PARTITIONS = Registry[Partition]("partition")


def register_partition(name: str, partition: Partition) -> None:
    """Give a partition a short name, for ``Expansion(partition=name)`` in Python and in YAML.

    Args:
        name: A name that no other partition has.
        partition: A callable of the signature of :class:`Partition`.

    Raises:
        ValueError: If the name is taken, or the object cannot be called.

    Example:
        >>> register_partition("random", lambda weight, alive, alpha, generator: alive.long())
        Traceback (most recent call last):
        ...
        ValueError: The partition 'random' is registered already; choose another name.
    """
    if not callable(partition):
        raise ValueError(f"A partition is a callable (weight, alive, alpha, generator), found {partition!r}.")
    _PARTITIONS.register(name, partition)


def resolve_partition(partition: str | Partition) -> Partition:
    """The partition that a short name stands for; a partition is returned as it is.

    Raises:
        ValueError: If the name is unknown, or the object is no partition.

    Example:
        >>> resolve_partition("random")
        Random()
        >>> resolve_partition("radnom")
        Traceback (most recent call last):
        ...
        ValueError: Unknown partition 'radnom'. Did you mean 'random'? Known: ... contiguous, ...
    """
    if isinstance(partition, str):
        return _PARTITIONS.get(partition)
    if not callable(partition) or isinstance(partition, type):
        raise ValueError(
            f"A partition is a short name ({', '.join(sorted(_PARTITIONS))}) or a callable (weight, alive, alpha, "
            f"generator), such as fpe.partitions.Random(); found {partition!r}."
        )
    return partition


def children_masks(partition: Partition, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """Call a partition and check its result.

    Args:
        partition: The partition.
        weight: Floating ``(neurons, inputs, k)``.
        alive: Bool ``(neurons, inputs)``.
        alpha: Number of children of each neuron.
        generator: The only source of randomness.

    Returns:
        Bool ``(neurons, alpha, inputs)``: the inputs that each child inherits.

    Raises:
        ValueError: If a partition from outside of this room returned something else.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight, alive = torch.randn(3, 8, 1), torch.ones(3, 8, dtype=torch.bool)
        >>> masks = children_masks(resolve_partition("random"), weight, alive, 2, generator)
        >>> masks.shape, bool((masks.sum(1) == 1).all())
        (torch.Size([3, 2, 8]), True)
    """
    # The partition may be a stranger's: its result is checked before anything is masked by it.
    found: object = partition(weight, alive, alpha, generator)
    neurons, inputs = alive.shape
    what = type(found).__name__
    if isinstance(found, Tensor):
        found = found.cpu()
        what = f"{found.dtype} {tuple(found.shape)}"
        # Masked weights stay masked, whatever the rule says of them.
        if found.dtype == torch.bool and found.shape == (neurons, alpha, inputs):
            return found & alive.unsqueeze(1)
        if found.dtype == torch.int64 and found.shape == alive.shape:
            if bool(((found >= 0) & (found < alpha)).all()):
                return (found.unsqueeze(1) == torch.arange(alpha).view(1, -1, 1)) & alive.unsqueeze(1)
            what += f" with values {int(found.min())} to {int(found.max())}"
    raise ValueError(
        f"A partition has to return int64 ({neurons}, {inputs}) with children 0 to {alpha - 1}, or bool "
        f"({neurons}, {alpha}, {inputs}); found {what}."
    )
