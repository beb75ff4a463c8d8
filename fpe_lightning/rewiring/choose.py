"""Exactly the smallest and the largest of some values, over one tensor or several; among equals the first go first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fpe_lightning.pruning.smallest import pieces_of, without_smallest


def smallest(values: Sequence[Tensor], among: Sequence[Tensor], count: int) -> list[Tensor]:
    """Where the ``count`` smallest magnitudes are.

    Args:
        values: Tensors of any shapes and floating dtypes.
        among: Bool tensors of their shapes, True where a value counts.
        count: How many, at most as many as count.

    Returns:
        Bool tensors of the same shapes. Of equal magnitudes, those of the first tensor and the lowest index are taken.

    Example:
        >>> smallest([torch.tensor([0.3, -0.1, 0.1])], [torch.ones(3, dtype=torch.bool)], 1)
        [tensor([False,  True, False])]
    """
    kept = _without_smallest(values, among, count)
    return [each & ~stays for each, stays in zip(among, kept, strict=True)]


def largest(values: Sequence[Tensor], among: Sequence[Tensor], count: int) -> list[Tensor]:
    """Where the ``count`` largest of some values of at least 0 are, by the same rules.

    Example:
        >>> largest([torch.tensor([0.3, 0.5, 0.5])], [torch.ones(3, dtype=torch.bool)], 1)
        [tensor([False,  True, False])]
    """
    # Backwards, so that of equal values the last ones go first.
    back = [each.reshape(-1).flip(0) for each in reversed(values)]
    allowed = [each.reshape(-1).flip(0) for each in reversed(among)]
    kept = _without_smallest(back, allowed, sum(int(each.sum()) for each in among) - count)
    return [each.flip(0).view(value.shape) for each, value in zip(reversed(kept), values, strict=True)]


def _without_smallest(values: Sequence[Tensor], among: Sequence[Tensor], count: int) -> list[Tensor]:
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in values) else torch.float32
    pieces = [pieces_of(value, mask) for value, mask in zip(values, among, strict=True)]
    kept = without_smallest([piece for each in pieces for piece in each], count, dtype)
    return [torch.cat([next(kept) for _ in each]).view(value.shape) for each, value in zip(pieces, values, strict=True)]
