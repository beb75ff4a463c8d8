"""The paper's partition for Boolean tasks whose clauses are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from fpe_lightning.partitions.partition import Partition


@dataclass(frozen=True)
class Clause(Partition):
    """All literals of a clause go to the same child; one partition serves all neurons.

    Clauses are assigned in random order, so that children get equally many to within one. The call raises ValueError
    where the clauses do not hold every input of the layer exactly once, or are fewer than the children.

    Args:
        clauses: Lists of input indices, one for each clause. Where they are left out, ``ExpansionCallback`` takes
            those of the datamodule (its attribute ``clauses``).

    Raises:
        ValueError: If a clause is empty.

    Example:
        >>> weight, generator = torch.randn(3, 4, 1), torch.Generator().manual_seed(0)
        >>> partition = Clause([[0, 3], [1, 2]])
        >>> assignment = partition(weight, torch.ones(3, 4, dtype=torch.bool), 2, generator)
        >>> bool(assignment[0, 0] == assignment[0, 3]), bool(assignment[0, 0] == assignment[0, 1])
        (True, False)
    """

    clauses: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        if not all(len(clause) for clause in self.clauses):
            raise ValueError("`clauses` has to hold non-empty lists of input indices, one for each clause.")

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        clauses, inputs = self.clauses, alive.shape[1]
        if not clauses:
            raise ValueError(
                "The partition Clause has no clauses: give `clauses`, lists of input indices, one for each clause."
            )
        self._check(inputs)
        if len(clauses) < alpha:
            raise ValueError(f"{len(clauses)} clauses cannot go to alpha={alpha} children; use a smaller alpha.")
        child = torch.empty(inputs, dtype=torch.int64)
        for position, clause in enumerate(torch.randperm(len(clauses), generator=generator).tolist()):
            child[list(clauses[clause])] = position % alpha
        return child.expand(alive.shape).clone()

    def _check(self, inputs: int) -> None:
        """Every input of the layer has to be in one clause."""
        named = np.concatenate([np.asarray(clause) for clause in self.clauses])
        if not np.issubdtype(named.dtype, np.integer):
            raise ValueError(f"`clauses` hold {named.dtype} numbers; name inputs by integers, 0 to {inputs - 1}.")
        outside = named[(named < 0) | (named >= inputs)]
        if len(outside):
            raise ValueError(f"`clauses` name input {outside[0]}, but the layer has inputs 0 to {inputs - 1}.")
        counts = np.bincount(named, minlength=inputs)
        if (counts > 1).any():
            raise ValueError(
                f"`clauses` overlap: input {int(counts.argmax())} is in {int(counts.max())} of them; put each in one."
            )
        if (counts == 0).any():
            raise ValueError(
                f"`clauses` miss {int((counts == 0).sum())} of {inputs} inputs, the first is {int(counts.argmin())}; "
                "put every input in one clause."
            )
