"""The code of a folded weight: for each place of the parent's weight, the child that holds it.

Of the rows of a wide weight, ``children`` at a time belong to one parent. Where no input reaches two of them, each
place (parent, input) has one weight at most. So the wide matrix folds into one of the parent's shape and a small code:
``0 .. children - 1`` is the child that holds the weight, ``children`` says that the place was pruned.

Codes take 2, 4 or 8 bits each. They are kept with a header of five bytes: the number of children, and the run, the
number of consecutive rows that a parent has (1 for linear layers and convolutions, more where a unit has several rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HEADER = 5
"""Bytes before the codes: one for the number of children, four for the run."""
MOST_CHILDREN = 254
"""A code has to fit into 8 bits, next to the one for pruned places."""


@dataclass(frozen=True)
class Fold:
    """Which rows of a wide weight fold together.

    Attributes:
        children: Rows of the wide weight for each row of the folded one.
        run: Consecutive rows of one parent.
    """

    children: int
    run: int = 1

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 2 if self.children < 4 else 4 if self.children < 16 else 8

    def by_child(self, wide: Tensor) -> Tensor:
        """A view of a wide weight as ``(parents, children, run, ...)``.

        Example:
            >>> Fold(2).by_child(torch.zeros(6, 4)).shape
            torch.Size([3, 2, 1, 4])
        """
        return wide.view(-1, self.children, self.run, *wide.shape[1:])

    def folded_shape(self, wide: torch.Size) -> torch.Size:
        """The shape of the folded weight."""
        return torch.Size([wide[0] // self.children, *wide[1:]])


def find_fold(mask: Tensor, runs: tuple[int, ...] = (1,)) -> Fold | None:
    """The largest fold of a mask: as many adjacent rows as possible, no two of which keep the same input.

    Args:
        mask: Bool ``(rows, inputs, ...)``.
        runs: Lengths of runs to try, in this order.

    Returns:
        The fold, or None where adjacent rows share inputs.

    Example:
        >>> find_fold(torch.tensor([[True, False], [False, True], [False, True], [True, False]]))
        Fold(children=2, run=1)
        >>> find_fold(torch.ones(4, 2, dtype=torch.bool)) is None
        True
    """
    for run in runs:
        units, rest = divmod(len(mask), run)
        if rest:
            continue
        # A fold of g rows is one of each divisor of g too, so the primes that do not fold rule out their multiples.
        sizes = [size for size in range(2, min(units, MOST_CHILDREN) + 1) if units % size == 0]
        unfit: list[int] = []
        best = None
        for size in sizes:
            if any(size % other == 0 for other in unfit):
                continue
            if _disjoint(Fold(size, run).by_child(mask)):
                best = Fold(size, run)
            else:
                unfit.append(size)
        if best is not None:
            return best
    return None


def _disjoint(by_child: Tensor) -> bool:
    """Whether no two children of a parent keep the same place."""
    seen = by_child[:, 0].clone()
    for child in range(1, by_child.shape[1]):
        if bool((seen & by_child[:, child]).any()):
            return False
        seen |= by_child[:, child]
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
        (6, tensor([[0, 1, 2]], dtype=torch.uint8))
    """
    by_child = fold.by_child(mask)
    code = torch.full_like(by_child[:, 0], fold.children, dtype=torch.uint8)
    for child in range(fold.children):
        code.masked_fill_(by_child[:, child], child)
    return encode_codes(code, fold)


def encode_codes(code: Tensor, fold: Fold) -> Tensor:
    """The inverse of :func:`decode`: codes of all places, packed and with their header.

    Example:
        >>> decode(encode_codes(torch.tensor([[0, 2, 1]], dtype=torch.uint8), Fold(2)), Fold(2), torch.Size([1, 3]))
        tensor([[0, 2, 1]], dtype=torch.uint8)
    """
    header = [fold.children, *fold.run.to_bytes(4, "little")]
    return torch.cat([torch.tensor(header, dtype=torch.uint8, device=code.device), _pack(code.flatten(), fold.bits)])


def bytes_of(fold: Fold, shape: torch.Size) -> int:
    """Bytes of the codes of a folded weight, with their header.

    Example:
        >>> bytes_of(Fold(2), torch.Size([1, 3]))
        6
    """
    return HEADER + math.ceil(math.prod(shape) * fold.bits / 8)


def fold_of(codes: Tensor) -> Fold:
    """The fold that a header names.

    Example:
        >>> fold_of(encode(torch.eye(2, dtype=torch.bool), Fold(2)))
        Fold(children=2, run=1)
    """
    children, *run = codes[:HEADER].tolist()
    return Fold(children, int.from_bytes(bytes(run), "little"))


def decode(codes: Tensor, fold: Fold, shape: torch.Size) -> Tensor:
    """The code of each place, uint8 of the folded weight's shape.

    Args:
        codes: From :func:`encode`.
        fold: The one that its header names; to read it here would make a GPU wait.
        shape: Of the folded weight.
    """
    return _unpack(codes[HEADER:], fold.bits, math.prod(shape)).view(shape)


def has_pruned(codes: Tensor, fold: Fold) -> bool:
    """Whether some place is pruned.

    Example:
        >>> has_pruned(encode(torch.eye(2, dtype=torch.bool), Fold(2)), Fold(2))
        False
    """
    body = codes[HEADER:]
    return bool((_unpack(body, fold.bits, len(body) * 8 // fold.bits) == fold.children).any())


def _pack(code: Tensor, bits: int) -> Tensor:
    """Several codes in a byte, the first in the lowest bits."""
    each = 8 // bits
    padded = torch.nn.functional.pad(code, (0, -len(code) % each)).view(-1, each)
    packed = torch.zeros_like(padded[:, 0])
    for place in range(each):
        packed |= padded[:, place] << (bits * place)
    return packed


def _unpack(packed: Tensor, bits: int, places: int) -> Tensor:
    if bits == 8:
        return packed[:places]
    each = 8 // bits
    code = torch.stack([(packed >> (bits * place)) & (2**bits - 1) for place in range(each)], dim=1)
    return code.view(-1)[:places]
