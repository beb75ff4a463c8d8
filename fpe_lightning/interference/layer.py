"""The weight and structure of a layer at one moment, as measures and figures need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fpe_lightning.interference.capacity import feature_capacity
from fpe_lightning.interference.clauses import clause_collisions, clause_coverage
from fpe_lightning.interference.similarity import mean_absolute_cosine_similarity, mean_cosine_similarity
from fpe_lightning.sparse import dense_mask, dense_weight, parents_of, record_of


@dataclass(frozen=True)
class LayerState:
    """A copy of a layer's weight and structure at one moment, in the order (neurons, inputs, *kernel).

    Attributes:
        weight: ``(neurons, inputs, *kernel)`` floating point.
        mask: Bool, of the weight's shape; True where the weight may be non-zero.
        parents: ``(neurons,)`` int64, the original neuron of each row.
    """

    weight: Tensor
    mask: Tensor
    parents: Tensor

    @classmethod
    def of(cls, module: nn.Module) -> LayerState:
        """Copy the state of a module that has a ``weight``.

        Without a mask every weight counts, and without a record of splits every neuron is its own parent. Weights with
        their inputs first (transposed convolutions, the ``Conv1D`` of GPT-2) are transposed. Kernels of grouped
        convolutions are expanded over all their inputs, so that a column is one input and not one of each group.

        Args:
            module: A linear or convolutional layer.

        Returns:
            Detached copies, which later training or expansion does not change.

        Raises:
            ValueError: If the module has no weight of at least two dimensions.

        Example:
            >>> from torch import nn
            >>> from fpe_lightning.interference import LayerState
            >>> LayerState.of(nn.Linear(3, 2)).parents
            tensor([0, 1])
        """
        if not has_weight(module):
            raise ValueError(
                f"A layer with a weight of shape (neurons, inputs, *kernel) is needed, but found {module}."
            )
        # Every layout answers with a dense weight and mask.
        weight: Tensor = _whole(dense_weight(module))
        mask = dense_mask(module)
        mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else _whole(mask)
        # Bring every layer to (neurons, inputs, *kernel) with all inputs as columns.
        groups = getattr(module, "groups", 1)
        if groups > 1:
            weight, mask = _ungrouped(weight, groups), _ungrouped(mask, groups)
        if _neuron_axis(module) == 1:
            weight, mask = weight.transpose(0, 1), mask.transpose(0, 1)
        parents = _parents(module, weight.shape[0])
        return cls(weight, mask, parents)

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.weight.shape[0]

    @property
    def nonzeros(self) -> int:
        """Number of weights that the structure lets be non-zero."""
        return int(self.mask.sum())

    @cached_property
    def capacities(self) -> Tensor:
        """Feature capacity of each input, ``(inputs,)``."""
        return feature_capacity(self.weight)

    def statistics(self) -> dict[str, float]:
        """Measures to watch over time.

        Returns:
            ``feature_capacity`` (mean over inputs, where all-zero columns count 0), ``mean_cosine_similarity``,
            ``mean_absolute_cosine_similarity``, ``width``, ``mean_fan_in`` (weights that a neuron may use) and
            ``nonzeros``.

        Example:
            >>> from torch import nn
            >>> from fpe_lightning.interference import LayerState
            >>> LayerState.of(nn.Linear(3, 2)).statistics()["mean_fan_in"]
            3.0
        """
        return {
            "feature_capacity": self.capacities.mean().item(),
            "mean_cosine_similarity": mean_cosine_similarity(self.weight).item(),
            "mean_absolute_cosine_similarity": mean_absolute_cosine_similarity(self.weight).item(),
            "width": float(self.width),
            "mean_fan_in": self.nonzeros / self.width,
            "nonzeros": float(self.nonzeros),
        }

    def clause_statistics(self, groups: Sequence[Sequence[int]]) -> dict[str, float]:
        """Coverage and collisions of known clauses in the structure.

        Args:
            groups: One list of input indices per clause.

        Returns:
            ``clause_coverage``, and ``clause_collisions`` for two or more clauses.

        Raises:
            ValueError: If the layer has kernels, or an input of a clause is out of range.

        Example:
            >>> from torch import nn
            >>> from fpe_lightning.interference import LayerState
            >>> LayerState.of(nn.Linear(4, 2)).clause_statistics([[0, 1], [2, 3]])
            {'clause_coverage': 1.0, 'clause_collisions': 1.0}
        """
        statistics = {"clause_coverage": clause_coverage(self.mask, groups, self.parents).item()}
        if len(groups) > 1:
            statistics["clause_collisions"] = clause_collisions(self.mask, groups, self.parents).item()
        return statistics


def has_weight(module: nn.Module) -> bool:
    """Whether a module has its own floating-point ``weight`` from inputs to neurons (embeddings have no inputs).

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import has_weight
        >>> has_weight(nn.Linear(3, 2)), has_weight(nn.ReLU()), has_weight(nn.BatchNorm1d(2))
        (True, False, False)
    """
    weight = getattr(module, "weight", None)
    embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    if not isinstance(weight, Tensor) or is_lazy(weight) or embedding:
        return False
    return weight.is_floating_point() and weight.dim() >= 2


def was_split(module: nn.Module) -> bool:
    """Whether the neurons of a module's weight were split; the neurons of a layer that only reads split ones were not.

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import was_split
        >>> was_split(nn.Linear(3, 2))
        False
    """
    record = record_of(module)
    splits = [] if record is None else record.splits.get("weight", [])
    return any(split.dim == _neuron_axis(module) for split in splits)


def _neuron_axis(module: nn.Module) -> int:
    """The axis of the neurons in the weight: 1 in layers with their inputs first, and 0 in all others."""
    return int(isinstance(module, nn.modules.conv._ConvTransposeNd) or hasattr(module, "nf"))


def _parents(module: nn.Module, width: int) -> Tensor:
    """The original neuron of each row."""
    return parents_of(module, dim=_neuron_axis(module)) if was_split(module) else torch.arange(width)


def _ungrouped(kernel: Tensor, groups: int) -> Tensor:
    """Expand a grouped kernel ``(rows, columns / groups, *kernel)`` over all columns, zero outside each row's group."""
    rows = torch.arange(kernel.shape[0], device=kernel.device)
    # An extra axis for the groups: each row writes into the slot of its own group.
    full = kernel.new_zeros((kernel.shape[0], groups, *kernel.shape[1:]))
    full[rows, rows * groups // kernel.shape[0]] = kernel
    return full.flatten(1, 2)


def _whole(tensor: Tensor) -> Tensor:
    """A detached copy; if a tensor is sharded, every process takes part in gathering it."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach().clone()
