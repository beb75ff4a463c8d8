"""Clauses of a Boolean task that a neuron reads in full, and their collisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def whole_clauses(structure: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The clauses that each child can read in full.

    A clause is *whole* in a child if the child may read all its literals. The partition or pruning breaks a clause in a
    child by removing a single literal.

    Args:
        structure: ``(children, inputs)`` bool mask, True where a weight may be non-zero; or an int64 assignment
            ``(neurons, inputs)`` of child numbers ``0 .. alpha - 1``, which represents the mask with
            ``neurons * alpha`` rows, where children of a neuron are adjacent.
        groups: One list of input indices per clause.

    Returns:
        ``(children, clauses)`` bool.

    Raises:
        TypeError: If ``structure`` is neither a bool nor an int64 tensor.
        ValueError: If a shape, a child number or an input index is out of range, or a clause is empty.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import whole_clauses
        >>> whole_clauses(torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), groups=[[0, 1], [2, 3]])
        tensor([[ True, False],
                [False,  True],
                [False, False],
                [False, False]])
    """
    mask, _ = _mask_and_parents(structure, None)
    # Check all groups before the first of them indexes the mask.
    inputs = mask.shape[1]
    if len(groups) == 0:
        raise ValueError("`groups` needs at least one clause, but found none: give one list of input indices a clause.")
    for number, group in enumerate(groups):
        if len(group) == 0:
            raise ValueError(f"Clause {number} of `groups` is empty: give the indices of its inputs.")
        if not all(0 <= index < inputs for index in group):
            raise ValueError(
                f"Clause {number} of `groups` names the inputs {list(group)}, but the layer has the inputs "
                f"0 to {inputs - 1}."
            )
    return torch.stack([mask[:, list(group)].all(1) for group in groups], dim=1)


def clause_collisions(structure: Tensor, groups: Sequence[Sequence[int]], parents: Tensor | None = None) -> Tensor:
    r"""Collision rate: the share of pairs of clauses that are whole in the same child.

    Two clauses *collide* in a parent if both are whole (:func:`whole_clauses`) in at least one of its children. The
    rate is the share of (parent, pair of distinct clauses) combinations that collide. A dense layer, where every neuron
    is its own only child, has rate 1.

    If every neuron sends each input to one of ``alpha`` children, independently and uniformly, two clauses of ``k``
    literals without a common input meet in a given child with probability :math:`\alpha^{-2k}`. They can meet in any of
    the :math:`\alpha` children, but only in one, so the expected rate is
    :math:`\alpha \cdot \alpha^{-2k} = \alpha^{-(2k-1)}`. A balanced partition collides less often, and approaches this
    rate with more inputs. Clauses that share inputs collide more often, because only their union counts.

    Args:
        structure: ``(children, inputs)`` bool mask, or an int64 assignment ``(neurons, inputs)`` of child numbers.
        groups: One list of input indices per clause; at least two clauses.
        parents: ``(children,)`` int64, the parent of each row of a mask. With None, each row is its own parent. An
            assignment implies its parents and takes none.

    Returns:
        Scalar float32 in [0, 1]; lower is better.

    Raises:
        TypeError: If ``structure`` is neither a bool nor an int64 tensor.
        ValueError: If there are fewer than two clauses, or a shape, child number, parent or index does not fit.

    Example:
        The two clauses meet in a child of the first neuron, and the second neuron separates them.

        >>> import torch
        >>> from fpe_lightning.interference import clause_collisions
        >>> clause_collisions(torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1]]), groups=[[0, 1], [2, 3]])
        tensor(0.5000)
    """
    collisions, combinations = count_collisions(structure, groups, parents)
    return collisions / combinations


def clause_coverage(structure: Tensor, groups: Sequence[Sequence[int]], parents: Tensor | None = None) -> Tensor:
    r"""Coverage: the share of clauses that are whole in at least one child of the layer.

    If a clause is whole in no child, only the next layer can combine its literals. This definition is ours: the sources
    mention the coverage of clauses without a definition.

    If every neuron sends each input to one of ``alpha`` children, independently and uniformly, a clause of ``k``
    literals is whole in some child of a given neuron with probability :math:`\alpha^{-(k-1)}`. In a layer of ``h``
    neurons the expected coverage is therefore :math:`1 - (1 - \alpha^{-(k-1)})^h`. With many neurons it stays near 1
    while the collision rate (:func:`clause_collisions`) falls to :math:`\alpha^{-(2k-1)}`.

    Args:
        structure: ``(children, inputs)`` bool mask, or an int64 assignment ``(neurons, inputs)`` of child numbers.
        groups: One list of input indices per clause.
        parents: Accepted and checked as in :func:`clause_collisions`; coverage does not depend on it.

    Returns:
        Scalar float32 in [0, 1]; higher is better.

    Raises:
        TypeError: If ``structure`` is neither a bool nor an int64 tensor.
        ValueError: If a shape, child number, parent or index does not fit, or there is no clause.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import clause_coverage
        >>> clause_coverage(torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]]), groups=[[0, 1], [2, 3]])
        tensor(0.5000)
    """
    covered, clauses = count_covered(structure, groups, parents)
    return covered / clauses


def _mask_and_parents(structure: Tensor, parents: Tensor | None) -> tuple[Tensor, Tensor]:
    """The bool mask ``(children, inputs)``, and the parent ``(children,)`` of each row, numbered from 0."""
    if not isinstance(structure, Tensor) or structure.dtype not in (torch.bool, torch.int64):
        found = structure.dtype if isinstance(structure, Tensor) else type(structure).__name__
        raise TypeError(f"`structure` must be a bool mask or an int64 assignment, but found {found}.")
    if structure.dim() != 2 or structure.numel() == 0:
        raise ValueError(f"`structure` must have the shape (rows, inputs), but found {tuple(structure.shape)}.")
    if structure.dtype == torch.int64:
        if parents is not None:
            raise ValueError(
                "`parents` belongs to a mask, but found an assignment, whose rows are the parents: omit it."
            )
        if structure.amin() < 0:
            raise ValueError(f"Child numbers start at 0, but the assignment holds {int(structure.amin())}.")
        # (neurons, inputs, children) -> (neurons, children, inputs) -> children of a neuron in adjacent rows.
        mask = one_hot(structure).transpose(1, 2).bool()
        return mask.flatten(0, 1), torch.arange(mask.shape[0], device=mask.device).repeat_interleave(mask.shape[1])
    if parents is None:
        return structure, torch.arange(structure.shape[0], device=structure.device)
    if parents.dtype != torch.int64 or parents.shape != structure.shape[:1]:
        raise ValueError(
            f"`parents` must be int64 with one entry for each of the {structure.shape[0]} rows of the mask, but found "
            f"{parents.dtype} of shape {tuple(parents.shape)}."
        )
    # Number parents from 0 without gaps, as they index a table below.
    return structure, parents.to(structure.device).unique(return_inverse=True)[1]


def count_collisions(
    structure: Tensor, groups: Sequence[Sequence[int]], parents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The number of colliding (parent, pair of clauses) combinations, and of all combinations."""
    if len(groups) < 2:
        raise ValueError(f"A collision needs at least two clauses, but `groups` holds {len(groups)}.")
    mask, parents = _mask_and_parents(structure, parents)
    whole = whole_clauses(mask, groups)
    # All pairs of distinct clauses.
    first, second = torch.triu_indices(len(groups), len(groups), offset=1, device=mask.device)
    # Children in which both clauses of a pair are whole, counted by parent.
    both = whole[:, first] & whole[:, second]
    neurons = int(parents.max()) + 1
    meetings = both.new_zeros((neurons, first.numel()), dtype=torch.int64).index_add_(0, parents, both.long())
    collided = (meetings > 0).sum()
    return collided, torch.full_like(collided, neurons * first.numel())


def count_covered(structure: Tensor, groups: Sequence[Sequence[int]], parents: Tensor | None) -> tuple[Tensor, Tensor]:
    """The number of clauses that are whole in some child, and of all clauses."""
    mask, _ = _mask_and_parents(structure, parents)
    covered = whole_clauses(mask, groups).any(0).sum()
    return covered, torch.full_like(covered, len(groups))
