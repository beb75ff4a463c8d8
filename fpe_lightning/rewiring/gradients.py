"""Sum the dense gradients of masked weights, which training itself never sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.rewiring.weights import Weight, movable_weights
from fpe_lightning.sparse.guard import observe
from fpe_lightning.sparse.moves import Growth


class GradientSum:
    """The sum of the dense gradients of one weight, and what follows from it.

    The rows of a folded weight are summed in turns, one after another within a window: what is held at a time has the
    size of the stored weight, not of the dense one.

    Args:
        weight: The weight.
        turns: The largest number of turns: the backward passes of the window at most.

    Example:
        >>> total = GradientSum(Weight("0", "weight", nn.Linear(2, 1)))
        >>> total.add(torch.ones(1, 2)), total.add(torch.ones(1, 2), factor=0.5)
        (None, None)
        >>> total.sum
        tensor([[1.5000, 1.5000]])
    """

    def __init__(self, weight: Weight, turns: int = 1) -> None:
        self.weight = weight
        self.rows = weight.moves.rows(weight.module, weight.key, turns)
        self.shape = weight.moves.dense_shape(weight.module, weight.key)
        self.turn = 0
        self.sum: Tensor | None = None
        self.added = 0
        self.parts: list[Growth] = []
        self.counts: list[int] = []

    def add(self, gradient: Tensor, rows: slice | None = None, factor: float = 1.0) -> None:
        """Add the gradient of a backward pass.

        Args:
            gradient: Of some rows of the dense weight; one of another shape, as after a split, is not counted.
            rows: Which rows; None for all.
            factor: What it is multiplied by, such as the inverse of a loss scale. A scaled gradient that overflowed is
                not counted, as its optimizer step is not taken either.
        """
        rows = rows or slice(0, self.shape[0])
        if self.turn == len(self.rows) or gradient.shape != (rows.stop - rows.start, *self.shape[1:]):
            return
        wanted = self.rows[self.turn]
        start, stop = max(rows.start, wanted.start), min(rows.stop, wanted.stop)
        if start >= stop or (factor != 1.0 and not bool(gradient.isfinite().all())):
            return
        if self.sum is None:
            kind = torch.float64 if gradient.dtype == torch.float64 else torch.float32
            shape = (wanted.stop - wanted.start, *self.shape[1:])
            self.sum = torch.zeros(shape, dtype=kind, device=gradient.device)
        part = gradient[start - rows.start : stop - rows.start]
        self.sum[start - wanted.start : stop - wanted.start].add_(part, alpha=factor)
        self.added += start == wanted.start  # a pass may bring the rows in several pieces

    def decay(self, factor: float) -> None:
        """Multiply the sum: called after every step, it makes a momentum of the sum."""
        if self.sum is not None:
            self.sum.mul_(factor)

    def add_up(self, over_processes: Callable[[Tensor], Tensor], keep: bool) -> None:
        """Replace the sum by the one over all processes.

        Args:
            over_processes: Sums a tensor over all processes, in place; each of them calls it for the same weights.
            keep: Whether this process keeps the result; the sum of the others is empty then.
        """
        if self.turn == len(self.rows):
            return
        rows, device = self.rows[self.turn], self.weight.parameter.device
        if self.sum is None:  # this process had no gradient, and others may have had one
            double = self.weight.parameter.dtype == torch.float64
            shape = (rows.stop - rows.start, *self.shape[1:])
            self.sum = torch.zeros(shape, dtype=torch.float64 if double else torch.float32, device=device)
        self.sum = over_processes(self.sum.to(device))
        self.added = int(over_processes(torch.tensor(self.added, device=device)))
        if not keep or not self.added:
            self.sum, self.added = None, 0

    def end_turn(self) -> bool:
        """Turn the sum of these rows into scores, and go on to the next rows; False where there is no sum yet."""
        if self.sum is None:
            return False
        self.parts.append(self._growth())
        self.counts.append(self.added)
        self.turn, self.sum, self.added = self.turn + 1, None, 0
        return True

    def growth(self) -> Growth | None:
        """The scores of all places; None where some rows have no gradient, or one that is not finite."""
        parts = [*self.parts, self._growth()] if self.sum is not None else self.parts
        if len(parts) != len(self.rows) or not all(bool(part.score.isfinite().all()) for part in parts):
            return None
        whole = Growth.joined(parts)
        return Growth(whole.score * (sum(self.counts) + self.added), whole.child)

    def _growth(self) -> Growth:
        """The scores of the rows of this turn, by a mean: turns may count different numbers of backward passes."""
        assert self.sum is not None
        mean = self.sum / self.added
        return self.weight.moves.growth(self.weight.module, self.weight.key, mean, self.rows[self.turn])

    def state_dict(self) -> dict[str, Any]:
        """The sum so far, in plain types and tensors."""
        parts = [(part.score, part.child) for part in self.parts]
        rows = [(each.start, each.stop) for each in self.rows]
        return {"rows": rows, "sum": self.sum, "added": self.added, "parts": parts, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved sum was."""
        device = self.weight.parameter.device
        self.rows = [slice(*each) for each in state["rows"]]
        self.sum = None if state["sum"] is None else state["sum"].to(device, copy=True)
        self.parts = [Growth(s.to(device), None if c is None else c.to(device)) for s, c in state["parts"]]
        self.added, self.counts, self.turn = state["added"], list(state["counts"]), len(self.parts)


class GradientSums(Mapping[str, GradientSum]):
    """The sums of several weights by their names, filled by backward passes from :meth:`start` to :meth:`stop`.

    Args:
        weights: From :func:`~fpe_lightning.rewiring.weights.movable_weights`.
        turns: See :class:`GradientSum`.

    Example:
        >>> len(GradientSums([]))
        0
    """

    def __init__(self, weights: Iterable[Weight], turns: int = 1) -> None:
        self.factor = 1.0
        """What gradients are multiplied by: the inverse of the loss scale."""
        self._sums = {weight.name: GradientSum(weight, turns) for weight in weights}

    @override
    def __getitem__(self, name: str) -> GradientSum:
        return self._sums[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    @override
    def __len__(self) -> int:
        return len(self._sums)

    def start(self) -> None:
        """Let backward passes add to the sums from now on."""
        for total in self._sums.values():
            observe(*total.weight.owner, self._observer(total))

    def stop(self) -> None:
        """End it."""
        for total in self._sums.values():
            observe(*total.weight.owner, None)

    def state_dict(self) -> dict[str, Any]:
        """All sums, in plain types and tensors."""
        return {"totals": {name: total.state_dict() for name, total in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where saved sums were; sums of weights that are not there any more are lost."""
        for name, each in state["totals"].items():
            if name in self._sums:
                self._sums[name].load_state_dict(each)

    @staticmethod
    def emptied(state: Mapping[str, Any]) -> dict[str, Any]:
        """A saved state in which nothing was added in the present turns.

        Example:
            >>> GradientSums.emptied({"totals": {"0.weight": {"sum": 1, "added": 3}}, "window": 2})
            {'totals': {'0.weight': {'sum': None, 'added': 0}}, 'window': 2}
        """
        totals = {name: {**each, "sum": None, "added": 0} for name, each in state["totals"].items()}
        return {**state, "totals": totals}

    def _observer(self, total: GradientSum) -> Any:
        return lambda gradient, rows: total.add(gradient, rows, self.factor)


@contextmanager
def dense_gradients(
    model: nn.Module, layers: str | list[str] | None = None, *, dense: bool = False
) -> Iterator[GradientSums]:
    """Sum the dense gradients of all masked weights over the backward passes inside of the ``with`` statement.

    Args:
        model: Any module with masked weights.
        layers: Names or globs of layers; None for all.
        dense: See :func:`~fpe_lightning.rewiring.weights.movable_weights`.

    Yields:
        The sums, for :func:`~fpe_lightning.rewiring.update.rewire`: one float32 tensor of the dense shape each.

    Example:
        >>> import fpe_lightning as fpe
        >>> model = nn.Linear(8, 2)
        >>> _ = fpe.sparsify(model, density=0.5)
        >>> with dense_gradients(model) as gradients:
        ...     model(torch.ones(1, 8)).sum().backward()
        >>> int(model.weight.grad.count_nonzero()), int(gradients["weight"].sum.count_nonzero())
        (8, 16)
    """
    sums = GradientSums(movable_weights(model, layers, dense=dense)[0])
    sums.start()
    try:
        yield sums
    finally:
        sums.stop()
