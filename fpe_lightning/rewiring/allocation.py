"""How many weights each layer of a sparse network keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch


def rounded(shares: Sequence[Fraction], total: int) -> list[int]:
    """Round shares down, and give the missing ones to the largest fractions, the first layers first.

    Example:
        >>> rounded([Fraction(5, 2), Fraction(5, 2)], 5)
        [3, 2]
    """
    counts = [int(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def uniform(shapes: Sequence[torch.Size], keep: int) -> list[int]:
    """Every layer has the same density.

    Example:
        >>> uniform([torch.Size([10, 100]), torch.Size([10, 10])], 550)
        [500, 50]
    """
    total = sum(shape.numel() for shape in shapes)
    return rounded([Fraction(shape.numel() * keep, total) for shape in shapes], keep)


def classifier_dense(shapes: Sequence[torch.Size], keep: int) -> list[int]:
    """The last layer stays dense, and the others have the same density.

    Raises:
        ValueError: If the last layer has as many weights as all layers keep together.

    Example:
        >>> classifier_dense([torch.Size([10, 100]), torch.Size([10, 10])], 600)
        [500, 100]
    """
    *hidden, last = shapes
    rest = keep - last.numel()
    if not hidden or rest < len(hidden):
        raise ValueError(
            f"`classifier_dense` keeps all {last.numel()} weights of the last layer, and {keep} weights are to be kept "
            'in all; raise `density`, or use allocation="uniform" or "erk".'
        )
    return [*uniform(hidden, rest), last.numel()]


def erk(shapes: Sequence[torch.Size], keep: int) -> list[int]:
    """Erdos-Renyi-Kernel: the density of a layer goes with the sum of its sizes over their product.

    Small layers so keep more, and none keeps more than all (Evci et al., ICML 2020).

    Example:
        >>> layers = [torch.Size([10, 100]), torch.Size([10, 10])]
        >>> erk(layers, 220), erk(layers, 700)
        ([186, 34], [600, 100])
    """
    counts = [0] * len(shapes)
    left, open_layers = keep, list(range(len(shapes)))
    while open_layers:
        weights = [sum(shapes[i]) for i in open_layers]
        shares = [Fraction(left * weight, sum(weights)) for weight in weights]
        full = [i for i, share in zip(open_layers, shares, strict=True) if share >= shapes[i].numel()]
        if not full:
            for i, count in zip(open_layers, rounded(shares, left), strict=True):
                counts[i] = count
            break
        for i in full:  # the others share what is left
            counts[i] = shapes[i].numel()
            left -= counts[i]
            open_layers.remove(i)
    return counts


ALLOCATIONS: dict[str, Callable[[Sequence[torch.Size], int], list[int]]] = {
    "uniform": uniform,
    "erk": erk,
    "classifier_dense": classifier_dense,
}
"""Allocations by name: shapes of the layers in the order of the model, and how many weights to keep in all."""
