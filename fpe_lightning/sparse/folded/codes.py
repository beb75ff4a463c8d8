"""The code of a folded weight: for each place of the parent's weight, the child that holds it.

Of the rows of a wide weight, ``children`` at a time belong to one parent. Where no input reaches two of them, each
place (parent, input) has one weight at most. So the wide matrix folds into one of the parent's shape and a small code.
The same holds of columns, ``columns`` of which read the children of one parent: where outgoing weights are partitioned,
each output keeps one of them. A layer between two hidden layers folds along both axes.

The code of a place is ``row child * columns + column child``; ``children * columns`` says that the place was pruned.
Codes take 2, 4 or 8 bits each. They are kept with a header of ten bytes: the number of children and the run along the
rows, then along the columns. A run is the number of consecutive entries that a parent has (1 for linear layers and
convolutions, more where a unit has several).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HEADER = 10
"""Bytes before the codes: for each axis one for the number of children, four for the run."""
MOST_CHILDREN = 254
"""A code has to fit into 8 bits, next to the one for pruned places."""
AT_ONCE = 2**20
"""Codes that are unpacked together to look at them."""
SAMPLE = 8
"""Rows that are looked at first, as most axes that do not fold show it in any row."""


@dataclass(frozen=True)
class Fold:
    """Which rows, and which columns, of a wide weight fold together.

    Attributes:
        children: Rows of the wide weight for each row of the folded one.
        run: Consecutive rows of one parent.
        columns: Columns of the wide weight for each column of the folded one.
        column_run: Consecutive columns of one parent.
    """

    children: int = 1
    run: int = 1
    columns: int = 1
    column_run: int = 1

    @property
    def codes(self) -> int:
        """Codes of children; the next one is that of pruned places."""
        return self.children * self.columns

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 2 if self.codes < 4 else 4 if self.codes < 16 else 8

    def folded_shape(self, wide: torch.Size) -> torch.Size:
        """The shape of the folded weight.

        Example:
            >>> Fold(2, columns=3).folded_shape(torch.Size([4, 6]))
            torch.Size([2, 2])
        """
        return torch.Size([wide[0] // self.children, wide[1] // self.columns, *wide[2:]])

    def wide_shape(self, folded: torch.Size) -> torch.Size:
        """The inverse of :meth:`folded_shape`."""
        return torch.Size([folded[0] * self.children, folded[1] * self.columns, *folded[2:]])

    def parts(self, wide: Tensor) -> Iterator[Tensor]:
        """A view of a wide weight for each code, ``(row parents, run, column parents, column run, ...)``.

        Example:
            >>> [part.flatten().tolist() for part in Fold(2).parts(torch.arange(4).view(4, 1))]
            [[0, 2], [1, 3]]
        """
        split = wide.view(-1, self.children, self.run, *_cut(wide, self.columns, self.column_run))
        for row in split.unbind(1):
            yield from row.unbind(3)

    def places(self, folded: Tensor) -> Tensor:
        """A view of a folded weight, or of its codes, of the shape of each of :meth:`parts`."""
        return folded.view(-1, self.run, folded.shape[1] // self.column_run, self.column_run, *folded.shape[2:])


def _cut(wide: Tensor, columns: int, run: int) -> list[int]:
    return [wide.shape[1] // (columns * run), columns, run, *wide.shape[2:]]


def find_fold(mask: Tensor, runs: Iterable[int] = (1,), column_runs: Iterable[int] = (1,)) -> Fold | None:
    """The largest fold of a mask: as many adjacent rows as possible, no two of which keep the same input.

    The rows fold first, then the columns of what they fold to.

    Args:
        mask: Bool ``(rows, inputs, ...)``.
        runs: Lengths of runs of rows to try, in this order.
        column_runs: The same for columns.

    Returns:
        The fold, or None where adjacent rows share inputs, and adjacent columns share outputs.

    Example:
        >>> find_fold(torch.tensor([[True, False], [False, True], [False, True], [True, False]]))
        Fold(children=2, run=1, columns=1, column_run=1)
        >>> find_fold(torch.tensor([[True, False, True, False], [False, True, True, False]]))
        Fold(children=1, run=1, columns=2, column_run=1)
        >>> find_fold(torch.ones(4, 2, dtype=torch.bool)) is None
        True
    """
    children, run = _best(mask, runs, MOST_CHILDREN)
    if children > 1:
        mask = mask.view(-1, children, run, *mask.shape[1:]).any(1).flatten(0, 1)
    columns, column_run = _best(mask.transpose(0, 1), column_runs, MOST_CHILDREN // children)
    return None if children == columns == 1 else Fold(children, run, columns, column_run)


def _best(mask: Tensor, runs: Iterable[int], most: int) -> tuple[int, int]:
    """The largest number of children along the first axis, and their run; ``(1, 1)`` where nothing folds."""
    if 2 * int(mask.count_nonzero()) > mask.numel():  # two children leave half of the entries free
        return 1, 1
    for run in runs:
        units, rest = divmod(len(mask), run)
        if rest:
            continue
        by_unit = mask.unflatten(0, (units, run))
        # A fold of g rows is one of each divisor of g too, so the primes that do not fold rule out their multiples.
        unfit: list[int] = []
        best = 1
        for size in (size for size in range(2, min(units, most) + 1) if units % size == 0):
            if any(size % other == 0 for other in unfit):
                continue
            if _disjoint(by_unit.unflatten(0, (-1, size))):
                best = size
            else:
                unfit.append(size)
        if best > 1:
            return best, run
    return 1, 1


def _disjoint(by_child: Tensor) -> bool:
    """Whether no two children of a parent keep the same place; bool ``(parents, children, ...)``."""
    if len(by_child) > SAMPLE and not _disjoint(by_child[:SAMPLE]):
        return False
    seen = by_child[:, 0].clone()
    for child in by_child.unbind(1)[1:]:
        if bool((seen & child).any()):
            return False
        seen |= child
    return True


def encode(mask: Tensor, fold: Fold) -> Tensor:
    """The codes of a mask, with their header.

    Args:
        mask: Bool ``(rows, inputs, ...)``.
        fold: A fold of it.

    Returns:
        uint8 ``(HEADER + ceil(places * bits / 8),)``.

    Example:
        >>> mask = torch.tensor([[True, False, False], [False, True, False]])
        >>> bits = encode(mask, Fold(2))
        >>> len(bits), decode(bits, Fold(2), torch.Size([1, 3]))
        (11, tensor([[0, 1, 2]], dtype=torch.uint8))
    """
    code = torch.full(fold.folded_shape(mask.shape), fold.codes, dtype=torch.uint8, device=mask.device)
    for child, part in enumerate(fold.parts(mask.contiguous())):
        fold.places(code).masked_fill_(part, child)
    return with_header(code, fold)


def with_header(code: Tensor, fold: Fold) -> Tensor:
    """Codes, uint8 of the folded weight's shape, packed and with their header."""
    axes = ((fold.children, fold.run), (fold.columns, fold.column_run))
    header = [byte for children, run in axes for byte in (children, *run.to_bytes(4, "little"))]
    codes = code.new_empty(bytes_of(fold, code.shape))
    codes[:HEADER] = torch.tensor(header, dtype=torch.uint8)
    pieces = codes[HEADER:].split(AT_ONCE * fold.bits // 8)
    for packed, part in zip(pieces, code.reshape(-1).split(AT_ONCE), strict=True):
        packed.copy_(_pack(part, fold.bits))
    return codes


def bytes_of(fold: Fold, shape: torch.Size) -> int:
    """Bytes of the codes of a folded weight, with their header.

    Example:
        >>> bytes_of(Fold(2), torch.Size([1, 3]))
        11
    """
    return HEADER + math.ceil(math.prod(shape) * fold.bits / 8)


def fold_of(codes: Tensor) -> Fold:
    """The fold that a header names.

    Example:
        >>> fold_of(encode(torch.eye(2, dtype=torch.bool), Fold(2)))
        Fold(children=2, run=1, columns=1, column_run=1)
    """
    header = bytes(codes[:HEADER].tolist())
    rows, columns = header[:5], header[5:]
    run, column_run = (int.from_bytes(axis[1:], "little") for axis in (rows, columns))
    return Fold(rows[0], run, columns[0], column_run)


def decode(codes: Tensor, fold: Fold, shape: torch.Size) -> Tensor:
    """The code of each place, uint8 of the folded weight's shape.

    Args:
        codes: From :func:`encode`.
        fold: The one that its header names; to read it here would make a GPU wait.
        shape: Of the folded weight.
    """
    return _unpack(codes[HEADER:], fold.bits, math.prod(shape)).view(shape)


def unpruned(codes: Tensor, fold: Fold, shape: torch.Size) -> Tensor:
    """The places that are not pruned, bool of the folded weight's shape.

    Example:
        >>> unpruned(encode(torch.eye(2, dtype=torch.bool)[:, :1], Fold(2)), Fold(2), torch.Size([1, 1]))
        tensor([[True]])
    """
    left = torch.empty(math.prod(shape), dtype=torch.bool, device=codes.device)
    bytes_at_once = AT_ONCE * fold.bits // 8
    for part, packed in zip(left.split(AT_ONCE), codes[HEADER:].split(bytes_at_once), strict=True):
        torch.lt(_unpack(packed, fold.bits, len(part)), fold.codes, out=part)
    return left.view(shape)


def has_pruned(codes: Tensor, fold: Fold) -> bool:
    """Whether some place is pruned.

    Example:
        >>> has_pruned(encode(torch.eye(2, dtype=torch.bool), Fold(2)), Fold(2))
        False
    """
    return any(
        bool((_unpack(packed, fold.bits, len(packed) * 8 // fold.bits) == fold.codes).any())
        for packed in codes[HEADER:].split(AT_ONCE)
    )


def _pack(code: Tensor, bits: int) -> Tensor:
    """Several codes in a byte, the first in the lowest bits."""
    each = 8 // bits
    padded = torch.nn.functional.pad(code, (0, -len(code) % each)).view(-1, each)
    packed = torch.zeros_like(padded[:, 0])
    for place in range(each):
        packed |= padded[:, place] << (bits * place)
    return packed


def _unpack(packed: Tensor, bits: int, places: int) -> Tensor:
    """The inverse of :func:`_pack`, without the codes that fill the last byte up."""
    if bits == 8:
        return packed[:places]
    each = 8 // bits
    if torch.compiler.is_compiling() or sys.byteorder == "big":
        shifts = bits * torch.arange(each, dtype=torch.uint8, device=packed.device)
        return ((packed.unsqueeze(1) >> shifts) & (2**bits - 1)).view(-1)[:places]
    # Each byte becomes an integer of as many bytes as it has codes, the first in the lowest: a few fast operations.
    if each == 4:
        wide = packed.to(torch.int32)
        wide = (wide | (wide << 6) | (wide << 12) | (wide << 18)) & 0x03030303
    else:
        wide = packed.to(torch.int16)
        wide = (wide | (wide << 4)) & 0x0F0F
    return wide.view(torch.uint8)[:places]
