"""Find the smallest magnitudes of many weights exactly, in pieces: nothing is sorted or copied as a whole.

Floating-point magnitudes are ordered as their bits read as integers are. The bits of the threshold are found 16 at a
time, from a histogram of the weights that agree with the bits found before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Piece = Callable[[], tuple[Tensor, Tensor | None]]
"""Gives some weights, of any shape, and a bool mask of their shape (None: all count)."""

PIECE = 2**18
"""Weights of a piece."""

DIGIT = 16


def pieces_of(weight: Tensor, mask: Tensor | None) -> list[Piece]:
    """Cut one tensor, and its mask, into pieces in row-major order.

    Example:
        >>> [piece()[0].shape for piece in pieces_of(torch.zeros(2, 3), None)]
        [torch.Size([6])]
    """
    values = weight.detach().reshape(-1).split(PIECE)
    masks = [None] * len(values) if mask is None else mask.reshape(-1).split(PIECE)
    return [functools.partial(lambda *pair: pair, *pair) for pair in zip(values, masks, strict=True)]


def without_smallest(pieces: Sequence[Piece], count: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Drop the ``count`` weights of smallest magnitude of all pieces together; among equals the first go first.

    Args:
        pieces: The weights, in the order by which ties go.
        count: How many to drop, at most as many as count.
        dtype: float32 or float64; magnitudes are compared in it.

    Yields:
        For each piece a bool tensor of its shape, True where a weight counts and stays.

    Example:
        >>> pieces = pieces_of(torch.tensor([0.5, -0.1, 0.1, 0.9]), None)
        >>> list(without_smallest(pieces, 1, torch.float32))
        [tensor([ True, False,  True,  True])]
    """
    threshold, ties = _threshold(pieces, count, dtype) if count else (None, 0)
    for piece in pieces:
        weight, mask = piece()
        kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.clone()
        if threshold is not None:
            magnitude = weight.abs().to(dtype)
            kept &= magnitude >= threshold.to(weight.device)
            if ties:
                equal = (kept & (magnitude == threshold.to(weight.device))).view(-1).nonzero().squeeze(1)[:ties]
                kept.view(-1)[equal] = False
                ties -= len(equal)
        yield kept


def _threshold(pieces: Sequence[Piece], count: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """The ``count``-th smallest magnitude, and how many that equal it are among the ``count`` smallest."""
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    # From the highest digit to the lowest: count the weights by their next digit, among those that agree with the
    # digits found so far, and take the digit at which the cumulative count reaches the number of weights that go.
    found, rest = 0, count
    for shift in range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(2**DIGIT, dtype=torch.int64)
        for piece in pieces:
            weight, mask = piece()
            code = weight.abs().to(dtype).view(integer)
            if shift + DIGIT < torch.finfo(dtype).bits:
                among = (code >> (shift + DIGIT)) == found
                code = code[among if mask is None else among & mask]
                digits = (code >> shift) & (2**DIGIT - 1)
            else:  # the first digit, of all weights without gathering them: masked ones go to bins of their own
                digits = code >> shift
                digits = digits if mask is None else digits | ((~mask).to(integer) << DIGIT)
            histogram += digits.view(-1).bincount(minlength=2**DIGIT)[: 2**DIGIT].cpu()
        cumulative = histogram.cumsum(0)
        digit = int(torch.searchsorted(cumulative, rest))
        rest -= int(cumulative[digit] - histogram[digit])
        found = (found << DIGIT) | digit
    return torch.tensor(found, dtype=integer).view(dtype), rest
