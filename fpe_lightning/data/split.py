"""Choose a part of labelled samples with the class shares of the whole, by a fixed rule."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_choice(labels: Tensor, size: int, seed: int = 0) -> Tensor:
    """Choose ``size`` samples at random such that every class keeps its share.

    Class ``c`` with ``n_c`` of the ``n`` samples gives ``floor(size * n_c / n)`` of them. The classes with the largest
    fractions give one more each, the lower label first, until the number is reached. One permutation drawn from
    ``seed`` decides the samples of each class.

    Args:
        labels: ``(n,)`` int64 class numbers.
        size: Number of samples to choose, between 1 and n.
        seed: Seed of a separate generator; the same seed chooses the same samples on every machine.

    Returns:
        ``(size,)`` int64, ascending sample numbers.

    Raises:
        ValueError: If ``size`` is out of range.

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

    # Sort the permuted samples by class; the first `quota` samples of each class are the choice.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    place_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class[place_in_class < quota.repeat_interleave(counts)].sort().values
