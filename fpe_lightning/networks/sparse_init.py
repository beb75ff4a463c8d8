"""Static random masks with exact counts, and their weight initialisation (Golubeva et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Generator, Tensor, nn

from fpe_lightning.sparse.masked import set_mask

ALLOCATIONS = ("hidden", "even", "fan_in")


def allocate(sizes: Sequence[int], excess: int, allocation: str) -> list[int]:
    """Distribute zeros over layers, and return the number of non-zeros that each layer keeps.

    Args:
        sizes: Number of weights of each layer, the classifier last.
        excess: Number of zeros over all layers.
        allocation: With ``"even"``, every layer has the same density. With ``"hidden"`` or ``"fan_in"``, the classifier
            stays dense, and the other layers have the same density. Layers with the largest fractions round up.

    Returns:
        Non-zeros of each layer; their sum is ``sum(sizes) - excess``.

    Raises:
        ValueError: If the sparse layers would be empty.

    Example:
        >>> allocate([1000, 100], 500, "hidden"), allocate([1000, 100], 550, "even")
        ([500, 100], [500, 50])
    """
    sparse = list(sizes) if allocation == "even" else list(sizes[:-1])
    total = sum(sparse)
    keep = total - excess
    if keep < len(sparse):
        raise ValueError(
            f"{excess} zeros among {total} weights (allocation={allocation!r}) leave {keep} non-zeros; "
            'use a smaller alpha, or allocation="even" to put zeros into the classifier too.'
        )
    # Exact fractions: floats would round large layers by more than one weight.
    shares = [Fraction(size * keep, total) for size in sparse]
    # Round down, then give the missing weights to the largest fractions.
    counts = [int(share) for share in shares]
    order = sorted(range(len(sparse)), key=lambda i: (counts[i] - shares[i], i))
    for i in order[: keep - sum(counts)]:
        counts[i] += 1
    return counts + list(sizes[len(sparse) :])


def random_mask(rows: int, columns: int, count: int, generator: Generator) -> Tensor:
    """A bool mask ``(rows, columns)`` with exactly ``count`` True entries, uniformly at random over the whole matrix.

    Example:
        >>> int(random_mask(4, 8, 10, torch.Generator().manual_seed(0)).sum())
        10
    """
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[torch.randperm(rows * columns, generator=generator)[:count]] = True
    return mask.view(rows, columns)


def constant_fan_in_mask(rows: int, columns: int, count: int, generator: Generator) -> Tensor:
    """A random mask whose rows have equally many True entries; the first ``count % rows`` rows have one more.

    Example:
        >>> constant_fan_in_mask(4, 8, 10, torch.Generator().manual_seed(0)).sum(1)
        tensor([3, 3, 2, 2])
    """
    # The rank of each entry in its row, in random order: the lowest ranks are kept.
    rank = torch.rand(rows, columns, generator=generator).argsort(dim=1).argsort(dim=1)
    fan_in = torch.full((rows, 1), count // rows)
    fan_in[: count % rows] += 1
    return rank < fan_in


def scaled_uniform_(layer: nn.Linear | nn.Conv2d, connectivity: float) -> None:
    """Initialise weight and bias from U(-s, s) with ``s = 1 / sqrt(fan_in * connectivity)``, in place.

    Example:
        >>> layer = nn.Linear(100, 10)
        >>> scaled_uniform_(layer, 0.25)
        >>> 0.1 < float(layer.weight.detach().abs().max()) <= 0.2
        True
    """
    bound = (layer.weight[0].numel() * connectivity) ** -0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound)


def sparsify_(layers: Sequence[nn.Linear | nn.Conv2d], counts: Sequence[int], allocation: str, seed: int) -> None:
    """Give layers static random masks, and redraw their weights for the new fan-in; dense layers are left alone.

    Args:
        layers: Layers, changed in place. Each kernel entry of a convolution counts as one input.
        counts: Number of non-zeros that each layer keeps, as from :func:`allocate`.
        allocation: ``"fan_in"`` gives every neuron or output channel the same number of weights.
        seed: Seed of the masks; initial weights come from torch's global generator.

    Example:
        >>> layer = nn.Conv2d(4, 6, 3)
        >>> sparsify_([layer], [60], "fan_in", seed=0)
        >>> layer.fpe_mask_weight.sum((1, 2, 3))
        tensor([10, 10, 10, 10, 10, 10])
    """
    # One generator for all masks: the draw of a layer depends on the layers before it.
    generator = Generator().manual_seed(seed)
    draw = constant_fan_in_mask if allocation == "fan_in" else random_mask
    for layer, count in zip(layers, counts, strict=True):
        if count < layer.weight.numel():
            scaled_uniform_(layer, count / layer.weight.numel())
            mask = draw(len(layer.weight), layer.weight[0].numel(), count, generator)
            set_mask(layer, "weight", mask.view(layer.weight.shape))
