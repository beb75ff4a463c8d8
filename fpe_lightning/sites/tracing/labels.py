"""Labels: which unit each entry of a tensor's axes descends from.

A label is an int64 tensor that broadcasts to the shape of the tensor that it describes. It holds the number of one
parameter entry for each position; an axis of size 1 means that the number does not depend on that axis. Number 0
stands for an entry that no parameter accounts for. A tensor may carry several labels, one per independent axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

UNLABELLED = 0


def varying(label: Tensor) -> tuple[int, ...]:
    """The axes along which a label distinguishes units.

    Args:
        label: int64, broadcastable to the tensor it describes.

    Returns:
        Indices of the axes of size above 1.

    Example:
        >>> varying(torch.arange(1, 5).view(1, 4, 1))
        (1,)
    """
    return tuple(axis for axis, size in enumerate(label.shape) if size > 1)


def compress(label: Tensor) -> Tensor:
    """Shrink the axes along which a label is constant to size 1.

    Args:
        label: int64 of any shape.

    Returns:
        The smallest label that broadcasts to the given one.

    Example:
        >>> compress(torch.arange(1, 4).view(3, 1).expand(3, 5)).shape
        torch.Size([3, 1])
    """
    # Expanded axes have stride 0 and need no look at their entries.
    for axis, stride in enumerate(label.stride()):
        if stride == 0:
            label = label.narrow(axis, 0, min(1, label.shape[axis]))
    for axis in varying(label):
        first = label.narrow(axis, 0, 1)
        # The last entry differs from the first on nearly every axis that varies, so one look at it is enough.
        if torch.equal(label.narrow(axis, label.shape[axis] - 1, 1), first) and bool((label == first).all()):
            label = first
    return label.contiguous()


def aligned(label: Tensor, dim: int) -> Tensor:
    """Prepend axes of size 1 until a label has ``dim`` axes, as broadcasting does.

    Args:
        label: int64 of at most ``dim`` axes.
        dim: Wanted number of axes.

    Returns:
        A view of ``label`` with ``dim`` axes.
    """
    return label.reshape([1] * (dim - label.dim()) + list(label.shape))


def along(label: Tensor, axis: int, dim: int) -> Tensor:
    """Lay the entries of a label along one axis of a tensor of ``dim`` axes.

    Args:
        label: int64 that varies along at most one axis.
        axis: Where its entries go.
        dim: Number of axes of the tensor to describe.

    Returns:
        The label, of size 1 everywhere but at ``axis``.

    Example:
        >>> along(torch.arange(1, 4), 1, 4).shape
        torch.Size([1, 3, 1, 1])
    """
    return label.reshape([-1 if position == axis else 1 for position in range(dim)])


def distinct(labels: Iterable[Tensor]) -> list[Tensor]:
    """Drop labels that repeat another one and labels that distinguish nothing.

    Args:
        labels: Labels of one tensor.

    Returns:
        The labels that are left, in their order.
    """
    kept: list[Tensor] = []
    for label in labels:
        if varying(label) and not any(label.shape == other.shape and torch.equal(label, other) for other in kept):
            kept.append(label)
    return kept


def transposed(label: Tensor, source: Sequence[str], target: Sequence[str]) -> Tensor:
    """Rearrange a label whose axes are named by letters, as in an einsum.

    Args:
        label: int64 of ``len(source)`` axes.
        source: Letter of each axis of the label.
        target: Letter of each axis of the result; letters unknown to ``source`` get size 1. The label must not vary
            along letters that ``target`` lacks.

    Returns:
        The label with one axis for each letter of ``target``.

    Example:
        >>> transposed(torch.arange(1, 4).view(1, 3), "kj", "ij").shape
        torch.Size([1, 3])
    """
    kept = [source.index(letter) for letter in target if letter in source]
    dropped = [axis for axis in range(label.dim()) if axis not in kept]
    sizes = iter([label.shape[axis] for axis in kept])
    return label.permute(kept + dropped).reshape([next(sizes) if letter in source else 1 for letter in target])
