"""A written rule for choosing a part of labelled samples with the class shares of the whole."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_choice(labels: Tensor, size: int, seed: int = 0) -> Tensor:
    """Choose ``size`` samples at random such that every class keeps its share.

    Class ``c`` with ``n_c`` of the ``n`` samples gives ``floor(size * n_c / n)`` of them; what is still missing comes
    one each from the classes with the largest fractions, the lower label first. Which samples of a class are taken
    is decided by one permutation drawn from ``seed``.

    Args:
        labels: ``(n,)`` int64 class numbers.
        size: Number of samples to choose, between 1 and n.
        seed: Seed of an own generator; the same seed chooses the same samples everywhere.

    Returns:
        ``(size,)`` int64, ascending sample numbers.

    Raises:
        ValueError: If there are not ``size`` samples to choose from.

    Example:
        >>> labels = torch.tensor([0] * 6 + [1] * 3)
        >>> labels[stratified_choice(labels, 3)].tolist()
        [0, 0, 1]
    """
    if not 1 <= size <= len(labels):
        raise ValueError(f"Cannot choose {size} of {len(labels)} samples; `size` has to be in 1 .. {len(labels)}.")
    counts = labels.bincount()
    quota, fraction = counts * size // len(labels), counts * size % len(labels)
    missing = size - int(quota.sum())
    quota[fraction.argsort(descending=True, stable=True)[:missing]] += 1

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    place_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class[place_in_class < quota.repeat_interleave(counts)].sort().values
