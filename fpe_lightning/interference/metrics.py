"""The measures of this room as metrics of torchmetrics, over several weights or layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from typing_extensions import override

from fpe_lightning.interference.capacity import feature_capacity
from fpe_lightning.interference.clauses import count_collisions, count_covered
from fpe_lightning.interference.similarity import sum_over_pairs


class FeatureCapacity(Metric):
    """Feature capacity of all updated weights; see :func:`~fpe_lightning.interference.capacity.feature_capacity`.

    ``update`` takes a weight ``(neurons, inputs, *kernel)``. With ``reduction="mean"``, ``compute`` returns the mean
    over the features of all weights (all-zero columns count as 0). With ``"none"``, it returns all capacities in order.

    Args:
        reduction: ``"mean"`` or ``"none"``.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Example:
        >>> capacity = FeatureCapacity()
        >>> capacity(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
        tensor(0.6667)
    """

    is_differentiable = True
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    capacities: list[Tensor]

    def __init__(self, reduction: Literal["mean", "none"] = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reduction not in ("mean", "none"):
            raise ValueError(f"`reduction` must be 'mean' or 'none', but found {reduction!r}.")
        self.reduction = reduction
        # A list, as weights have different numbers of inputs; their mean is over features, not over weights.
        self.add_state("capacities", default=[], dist_reduce_fx="cat")

    def update(self, weight: Tensor) -> None:
        """Add the features of one weight ``(neurons, inputs, *kernel)``."""
        self.capacities.append(feature_capacity(weight))

    def compute(self) -> Tensor:
        """The mean capacity, or all capacities."""
        capacities: Tensor = dim_zero_cat(self.capacities)
        return capacities.mean() if self.reduction == "mean" else capacities


class _Share(Metric):
    """A sum divided by a count, both over all updates."""

    full_state_update = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    total: Tensor
    count: Tensor

    def __init__(self, dtype: torch.dtype, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def _add(self, total: Tensor, count: Tensor) -> None:
        # Not in place: `forward` of torchmetrics keeps the state of before.
        self.total = self.total + total.to(self.total.dtype)
        self.count = self.count + count.to(self.count.dtype)

    def compute(self) -> Tensor:
        """The share over all updates; NaN if there is nothing to divide by."""
        return self.total / self.count


class MeanCosineSimilarity(_Share):
    """Mean cosine similarity of the neurons of all updated weights.

    ``update`` takes a weight ``(neurons, inputs, *kernel)``; ``compute`` returns the mean over the distinct pairs
    within each weight, all weights pooled. Neurons of different weights are never paired. See
    :func:`~fpe_lightning.interference.similarity.mean_cosine_similarity`.

    Args:
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Example:
        >>> similarity = MeanCosineSimilarity()
        >>> similarity(torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]))
        tensor(0.3333)
    """

    is_differentiable = True
    higher_is_better = False
    plot_lower_bound = -1.0
    absolute: bool = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(torch.float32, **kwargs)

    def update(self, weight: Tensor) -> None:
        """Add the pairs of neurons of one weight ``(neurons, inputs, *kernel)``."""
        self._add(*sum_over_pairs(weight, self.absolute))


class MeanAbsoluteCosineSimilarity(MeanCosineSimilarity):
    """:class:`MeanCosineSimilarity` with the magnitude of each cosine.

    See :func:`~fpe_lightning.interference.similarity.mean_absolute_cosine_similarity`.

    Args:
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Example:
        >>> similarity = MeanAbsoluteCosineSimilarity()
        >>> similarity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor(1.)
    """

    plot_lower_bound = 0.0
    absolute = True


class ClauseCollisions(_Share):
    """Collision rate over all updated structures.

    ``update`` takes a mask or an assignment, and the parents of a mask's rows. ``compute`` returns the share of
    colliding combinations (parent, pair of clauses) over all updates. See
    :func:`~fpe_lightning.interference.clauses.clause_collisions`.

    Args:
        groups: One list of input indices per clause; at least two clauses.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Example:
        >>> collisions = ClauseCollisions(groups=[[0, 1], [2, 3]])
        >>> collisions(torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]]))
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better: bool = False

    def __init__(self, groups: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(torch.int64, **kwargs)
        self.groups = [list(group) for group in groups]

    def _counted(self, structure: Tensor, parents: Tensor | None) -> tuple[Tensor, Tensor]:
        return count_collisions(structure, self.groups, parents)

    def update(self, structure: Tensor, parents: Tensor | None = None) -> None:
        """Add one layer: a mask ``(children, inputs)`` with its parents, or an assignment ``(neurons, inputs)``."""
        self._add(*self._counted(structure, parents))


class ClauseCoverage(ClauseCollisions):
    """Coverage of clauses over all updated structures.

    See :func:`~fpe_lightning.interference.clauses.clause_coverage`.

    Args:
        groups: One list of input indices per clause.
        kwargs: Keyword arguments of ``torchmetrics.Metric``.

    Example:
        >>> coverage = ClauseCoverage(groups=[[0, 1], [2, 3]])
        >>> coverage(torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]]))
        tensor(0.5000)
    """

    higher_is_better = True

    @override
    def _counted(self, structure: Tensor, parents: Tensor | None) -> tuple[Tensor, Tensor]:
        return count_covered(structure, self.groups, parents)
