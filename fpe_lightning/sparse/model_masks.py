"""The masks of a whole model: which parameters have one, and whether what is masked is still zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fpe_lightning.sparse.layout import layout_of
from fpe_lightning.sparse.masked import mask_of


def masked_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yield ``(qualified name, parameter, mask)`` for every masked parameter of a model, in the model's order.

    Example:
        >>> import torch
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        >>> set_mask(model[0], "weight", torch.eye(2, 4, dtype=torch.bool))
        >>> [name for name, _, _ in masked_parameters(model)]
        ['0.weight']
    """
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            mask = layout_of(module).mask(module) if name == "weight" else mask_of(module, name)
            if parameter is not None and mask is not None:
                yield f"{prefix}.{name}".lstrip("."), parameter, mask


def check_masks(model: nn.Module) -> None:
    """Check that every masked weight is exactly zero.

    Raises:
        RuntimeError: If one is not, with the parameter's name and how many entries grew back. Optimizers that mix the
            entries of a matrix (such as Muon) or code that writes weights directly do that.

    Example:
        >>> import torch
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(4, 2)
        >>> set_mask(layer, "weight", torch.eye(2, 4, dtype=torch.bool))
        >>> check_masks(layer)
    """
    for name, parameter, mask in masked_parameters(model):
        value: Any = parameter.detach()
        if hasattr(value, "full_tensor"):  # masks are whole, weights may be shards
            value = value.full_tensor()
        grown = int((value.ne(0) & ~mask).sum())
        if grown:
            raise RuntimeError(
                f"{grown} masked entries of `{name}` are no longer zero: something other than a gradient step per "
                "entry wrote to them. Use an optimizer that updates each entry from its own gradient, such as SGD or "
                "AdamW, and let weights be read by the forward of the module that owns them."
            )


def count_nonzeros(model: nn.Module) -> int:
    """Count the parameters that the structure lets be non-zero: weights, biases and norm parameters.

    A weight that merely happens to be zero counts; one that its mask holds at zero does not. Shared parameters count
    once.

    Args:
        model: Any module.

    Returns:
        The number of parameters, the same before and after every expansion.

    Example:
        >>> count_nonzeros(nn.Linear(4, 2))
        10
    """
    masks = {id(parameter): mask for _, parameter, mask in masked_parameters(model)}
    return sum(
        int(masks[id(parameter)].count_nonzero()) if id(parameter) in masks else parameter.numel()
        for parameter in model.parameters()
    )
