"""Unfold a folded weight, and fold a wide one back, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fpe_lightning.sparse.folded.codes import Fold, decode, encode  # noqa: F401 - the examples encode
from fpe_lightning.sparse.guard import zero_masked_

PIECE = 2**20
"""Entries of the wide weight that a CPU unfolds at a time: they stay in its cache until they are multiplied by."""


class Unfolding:
    """Where the places of a folded weight stand in the wide one, a piece after the other.

    Args:
        shape: Of the folded weight, ``(parents * run, inputs, ...)``.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows and columns fold together.
        piece: Entries of the wide weight that are unfolded together; 0 for all.
    """

    def __init__(self, shape: torch.Size, codes: Tensor, fold: Fold, piece: int = 0) -> None:
        self.shape, self.wide, self.fold = shape, fold.wide_shape(shape), fold
        self.units = shape[0] // fold.run
        self.code = decode(codes, fold, shape).view(self.units, -1)
        # The place of the first child within the wide rows of one parent, and the step from there to each other child.
        inside = torch.arange(self.wide[1:].numel() * fold.children * fold.run, device=codes.device)
        parts = list(fold.parts(inside.view(fold.children * fold.run, *self.wide[1:])))
        self.first = parts[0].reshape(-1)
        steps = [part.flatten()[0] for part in parts]
        self.steps = torch.stack([*steps, torch.zeros_like(steps[0])])  # a pruned place is zero, wherever it goes
        rows = max(1, piece // max(1, len(inside))) if piece and codes.device.type == "cpu" else self.units
        self.starts = range(0, self.units, rows)
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """The folded rows and the wide rows of each piece."""
        for start in self.starts:
            end = min(start + self.rows, self.units)
            per_unit = self.fold.run
            wide = per_unit * self.fold.children
            yield slice(start * per_unit, end * per_unit), slice(start * wide, end * wide)

    def _index(self, rows: slice) -> tuple[Tensor, Tensor]:
        code = self.code[rows.start // self.fold.run : rows.stop // self.fold.run]
        index = self.steps.index_select(0, code.reshape(-1).to(torch.int32)).view(code.shape).add_(self.first)
        return index, code

    def unfold(self, folded: Tensor, rows: slice, pruned: bool, out: Tensor | None = None) -> Tensor:
        """The wide rows that some rows of a folded weight stand for."""
        index, code = self._index(rows)
        source = folded[rows].reshape(len(code), -1)
        if pruned:
            source = source.clone()
            zero_masked_(source, code < self.fold.codes)
        shape = torch.Size([(rows.stop - rows.start) * self.fold.children, *self.wide[1:]])
        wide = folded.new_empty(shape) if out is None else out[: shape[0]]
        wide.zero_().view(len(code), -1).scatter_(1, index, source)
        return wide

    def fold_back(self, wide: Tensor, rows: slice, pruned: bool, out: Tensor) -> None:
        """Put the entry of the child that holds each place into some rows of a folded weight, and zero where pruned."""
        index, code = self._index(rows)
        torch.gather(wide.view(len(code), -1), 1, index, out=out[rows].view(len(code), -1))
        if pruned:
            zero_masked_(out[rows].view(len(code), -1), code < self.fold.codes)


def unfold(folded: Tensor, codes: Tensor, fold: Fold, pruned: bool = True) -> Tensor:
    """The wide weight that a folded one stands for; zero (or False) where a child has no weight.

    Args:
        folded: ``(parents * run, inputs, ...)``, any dtype.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows and columns fold together.
        pruned: Whether some place is pruned.

    Returns:
        ``(parents * children * run, inputs * columns, ...)``.

    Example:
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> unfold(torch.tensor([[1.0, 2.0]]), codes, Fold(2))
        tensor([[1., 0.],
                [0., 2.]])
    """
    unfolding = Unfolding(folded.shape, codes, fold, PIECE)
    wide = folded.new_empty(unfolding.wide)
    for rows, wide_rows in unfolding:
        unfolding.unfold(folded, rows, pruned, out=wide[wide_rows])
    return wide


def fold_back(wide: Tensor, codes: Tensor, fold: Fold, pruned: bool = True) -> Tensor:
    """The inverse of :func:`unfold`: for each place the entry of the child that holds it; zero where it is pruned.

    Example:
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> fold_back(torch.tensor([[1.0, 9.0], [9.0, 2.0]]), codes, Fold(2))
        tensor([[1., 2.]])
    """
    folded = wide.new_empty(fold.folded_shape(wide.shape))
    unfolding = Unfolding(folded.shape, codes, fold, PIECE)
    for rows, wide_rows in unfolding:
        unfolding.fold_back(wide[wide_rows], rows, pruned, folded)
    return folded


def unfold_plainly(folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    """:func:`unfold` as one expression: a compiler fuses it, and other transforms see through it."""
    number = torch.arange(fold.codes, dtype=torch.uint8, device=codes.device)
    number = number.view(1, fold.children, 1, 1, fold.columns, *[1] * (folded.dim() - 1))
    code = fold.places(decode(codes, fold, folded.shape)).unsqueeze(1).unsqueeze(4)
    source = fold.places(folded).unsqueeze(1).unsqueeze(4)
    return torch.where(code == number, source, folded.new_zeros(())).reshape(fold.wide_shape(folded.shape))
