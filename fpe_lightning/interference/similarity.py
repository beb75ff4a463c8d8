"""Cosine similarity between the weight vectors of a layer's neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from fpe_lightning.interference._columns import as_double, neuron_rows, result_dtype

_ROWS_AT_ONCE = 1024


def mean_cosine_similarity(weight: Tensor) -> Tensor:
    """Mean cosine similarity over the distinct pairs of a layer's neurons; lower is better (arXiv 2510.04500).

    Opposite pairs cancel aligned ones, so a layer of random neurons is near 0 for any interference: compare with
    :func:`mean_absolute_cosine_similarity`.

    An all-zero row has no direction. Pairs with such a neuron are omitted, so that a layer does not look better because
    it lost one. The result is NaN if fewer than two neurons have a weight, because no pair remains.

    Args:
        weight: ``(neurons, inputs)``, or a convolution kernel ``(neurons, inputs, *kernel)``, whose rows are
            flattened. Floating point.

    Returns:
        Scalar in [-1, 1], in the dtype of the weight (float32 for half precision).

    Raises:
        TypeError: If the weight is not a floating-point tensor.
        ValueError: If it has fewer than two dimensions, or no entry.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import mean_cosine_similarity
        >>> mean_cosine_similarity(torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 0.0]]))
        tensor(0.3333)
    """
    total, pairs = sum_over_pairs(weight, absolute=False)
    return (total / pairs).to(result_dtype(weight))


def mean_absolute_cosine_similarity(weight: Tensor) -> Tensor:
    """Mean magnitude of the cosine similarity over the distinct pairs of a layer's neurons; lower is better.

    Opposite neurons share their inputs as much as aligned ones do, and count as much here. All-zero rows are omitted as
    in :func:`mean_cosine_similarity`. Pairs are computed in blocks: memory grows with neurons, not with their square.

    Args:
        weight: ``(neurons, inputs)`` or ``(neurons, inputs, *kernel)``, floating point.

    Returns:
        Scalar in [0, 1], in the dtype of the weight (float32 for half precision); NaN if no pair remains.

    Raises:
        TypeError: If the weight is not a floating-point tensor.
        ValueError: If it has fewer than two dimensions, or no entry.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import mean_absolute_cosine_similarity
        >>> mean_absolute_cosine_similarity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor(1.)
    """
    total, pairs = sum_over_pairs(weight, absolute=True)
    return (total / pairs).to(result_dtype(weight))


def sum_over_pairs(weight: Tensor, absolute: bool) -> tuple[Tensor, Tensor]:
    """The sum of (absolute) cosines over distinct pairs of non-zero rows, and the number of those pairs."""
    rows = neuron_rows(as_double(weight))
    # Divide each row by its largest entry first: the norm of a row of 1e-200 would underflow to zero.
    rows = rows[rows.detach().abs().amax(1) != 0]
    rows = rows / rows.detach().abs().amax(1, keepdim=True)
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    count = unit.shape[0]
    if count < 2:  # rounding would leave a small remainder, and its quotient by no pair would be infinity, not NaN
        return unit.new_zeros(()), unit.new_zeros(())
    # The sum over all ordered pairs holds every distinct pair twice, and each row once with itself.
    if absolute:
        every = sum(((block @ unit.T).abs().sum() for block in unit.split(_ROWS_AT_ONCE)), unit.new_zeros(()))
    else:
        every = unit.sum(0).square().sum()
    return (every - count) / 2, unit.new_tensor(count * (count - 1) // 2)
