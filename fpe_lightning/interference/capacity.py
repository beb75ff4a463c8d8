"""Feature capacity: the share of a layer that each input feature has to itself."""

from __future__ import annotations

import torch
from torch import Tensor

from fpe_lightning.interference._columns import as_double, input_columns, result_dtype


def feature_capacity(weight: Tensor) -> Tensor:
    r"""Capacity of each input feature of a layer: the share of its direction that no other feature uses.

    With :math:`w_i` the i-th column of the weight,

    .. math::
        C_i = \frac{(w_i \cdot w_i)^2}{\sum_j (w_i \cdot w_j)^2},

    which is 1 if the column is orthogonal to all others and falls towards 0 as it shares its neurons; higher is better
    (arXiv 2510.04500). It does not depend on the scale of the weight.

    An all-zero column has capacity 0: no neuron reads that feature, so it occupies no part of the layer. A column that
    shrinks to zero among others tends to the same value, and the sum over all features stays at or below the number of
    neurons. Means therefore count it, so a layer does not look better because it dropped an input.

    The Gram matrix is computed on the smaller side of the weight (neurons by neurons, or inputs by inputs). So it is
    never larger than the weight, for any number of inputs. The result is differentiable in the weight.

    Args:
        weight: ``(neurons, inputs)``, or a convolution kernel ``(neurons, inputs, *kernel)``, whose column for an
            input is its ``neurons * kernel`` weights. Floating point.

    Returns:
        ``(inputs,)`` capacities in [0, 1], in the dtype of the weight (float32 for half precision).

    Raises:
        TypeError: If the weight is not a floating-point tensor.
        ValueError: If it has fewer than two dimensions, or no entry.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import feature_capacity
        >>> feature_capacity(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]))
        tensor([0.5000, 0.5000, 1.0000, 0.0000])
    """
    columns = input_columns(as_double(weight))
    # With u_i = w_i / |w_i|, the capacity is |w_i|^2 / sum_j (u_i . w_j)^2: smaller numbers, the same quotient.
    energy = columns.square().sum(0)
    used = energy != 0
    unit = columns / torch.where(used, energy, 1).sqrt()
    # sum_j (u_i . w_j)^2 equals u_i . (W W^T) u_i: compute the cheaper of the two.
    if columns.shape[0] <= columns.shape[1]:
        overlap = (unit * (columns @ columns.T @ unit)).sum(0)
    else:
        overlap = (columns.T @ unit).square().sum(0)
    capacity = torch.where(used, energy / torch.where(used, overlap, 1), 0)
    return capacity.clamp(max=1).to(result_dtype(weight))
