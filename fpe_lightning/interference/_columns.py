"""A weight as a matrix whose rows are neurons or whose columns are input features."""

from __future__ import annotations

import torch
from torch import Tensor


def as_double(weight: Tensor) -> Tensor:
    """The weight in double precision where the device has it, divided by its largest magnitude.

    Squares of dot products leave single precision early (weights of 1e-12 give 1e-48), and every measure in this
    package ignores the scale of the whole weight, so it is taken out first.

    Args:
        weight: ``(neurons, inputs, *kernel)``, floating point.

    Returns:
        The scaled weight; float64, or float32 on devices without doubles.

    Raises:
        TypeError: If the weight is not a floating-point tensor.
        ValueError: If it has fewer than two dimensions, or no entry.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"A floating-point weight of shape (neurons, inputs, *kernel) is needed, but found {found}.")
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(
            f"A non-empty weight of shape (neurons, inputs, *kernel) is needed, but found shape {tuple(weight.shape)}: "
            "pass the weight of a linear or convolutional layer."
        )
    precise = weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)
    scale = precise.detach().abs().amax()
    # `!= 0` and not `> 0`: a NaN has to reach the result, or a run that diverged would look like one without weights.
    return precise / torch.where(scale != 0, scale, 1)


def input_columns(weight: Tensor) -> Tensor:
    """One column an input feature: ``(neurons, inputs, *kernel)`` becomes ``(neurons * kernel, inputs)``."""
    return weight.movedim(1, -1).flatten(0, -2)


def neuron_rows(weight: Tensor) -> Tensor:
    """One row a neuron: ``(neurons, inputs, *kernel)`` becomes ``(neurons, inputs * kernel)``."""
    return weight.flatten(1)


def result_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that measures of a weight are returned in: half precision is answered in single."""
    return torch.promote_types(weight.dtype, torch.float32)
