"""A weight as a matrix whose rows are neurons or whose columns are input features."""

from __future__ import annotations

import torch
from torch import Tensor


def as_double(weight: Tensor) -> Tensor:
    """The weight in double precision where the device has it, divided by its largest magnitude.

    Squares of dot products soon exceed the range of single precision (weights of 1e-12 give 1e-48). Every measure in
    this package ignores the scale of the whole weight, so the scale is removed first.

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
    # `!= 0` and not `> 0`: a NaN has to reach the result, or a diverged run would look like one without weights.
    return precise / torch.where(scale != 0, scale, 1)


def input_columns(weight: Tensor) -> Tensor:
    """One column per input feature: ``(neurons, inputs, *kernel)`` becomes ``(neurons * kernel, inputs)``."""
    return weight.movedim(1, -1).flatten(0, -2)


def neuron_rows(weight: Tensor) -> Tensor:
    """One row per neuron: ``(neurons, inputs, *kernel)`` becomes ``(neurons, inputs * kernel)``."""
    return weight.flatten(1)


def result_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of measures of a weight: its own, or single precision for half precision."""
    return torch.promote_types(weight.dtype, torch.float32)
