"""The masks of a whole model: which parameters have one, how many non-zeros there are, and whether masks hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fpe_lightning.arguments import check_module
from fpe_lightning.sparse.guard import AT_ONCE, PREFIX
from fpe_lightning.sparse.layout import layout_of
from fpe_lightning.sparse.masked import mask_of


class MaskWarning(UserWarning):
    """Masked entries of a weight are not zero."""


def masked_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yield ``(qualified name, parameter, mask)`` for every masked parameter of a model, in the model's order.

    Where a mask's weight is computed from other parameters (weight norm, spectral norm, torch's prune), the mask stands
    for those of its shape.

    Example:
        >>> import torch
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
        >>> set_mask(model[0], "weight", torch.eye(2, 4, dtype=torch.bool))
        >>> [name for name, _, _ in masked_parameters(model)]
        ['0.weight']
    """
    for prefix, module in model.named_modules():
        path = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            mask = layout_of(module).mask(module) if name == "weight" else mask_of(module, name)
            if parameter is not None and mask is not None:
                yield path + name, parameter, mask
        # `weight_orig` of torch's prune, `weight_v` of the old weight norm, or a parametrization.
        for name, mask in _masks_without_parameter(module):
            for key, parameter in module.named_parameters():
                stands_for = key in (f"{name}_orig", f"{name}_v") or key.startswith(f"parametrizations.{name}.")
                if stands_for and parameter.shape == mask.shape:
                    yield path + key, parameter, mask


def _masks_without_parameter(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names of reparametrized weights, each with its mask."""
    for buffer, mask in module._buffers.items():
        name = buffer.removeprefix(f"{PREFIX}mask_")
        if mask is not None and name != buffer and name not in module._parameters:
            yield name, mask


def check_masks(model: nn.Module) -> None:
    """Check that every masked weight is exactly zero.

    Raises:
        RuntimeError: If one is not, with the parameter's name, how many entries are not zero, and what to do.

    Example:
        >>> import torch
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(4, 2)
        >>> set_mask(layer, "weight", torch.eye(2, 4, dtype=torch.bool))
        >>> check_masks(layer)
    """
    for name, parameter, mask in masked_parameters(model):
        if grown := _grown(parameter, mask):
            raise RuntimeError(sentence(name, grown))


def count_nonzeros(model: nn.Module) -> int:
    """Count the parameters that are or may be non-zero: weights, biases and norm parameters.

    A weight that merely happens to be zero counts; one that its mask holds at zero does not. A masked entry that is not
    zero counts too, with a warning. Shared parameters count once.

    Args:
        model: Any module.

    Returns:
        The number of parameters, the same before and after every expansion, and never fewer than the entries that are
        not zero.

    Warns:
        MaskWarning: If masked entries are not zero; see :func:`check_masks`.

    Example:
        >>> count_nonzeros(nn.Linear(4, 2))
        10
    """
    check_module(model)
    grown = {}
    for name, parameter, mask in masked_parameters(model):
        # Tied parameters hold one set of entries, and are counted once.
        if (found := _grown(parameter, mask)) and id(parameter) not in grown:
            warnings.warn(sentence(name, found), MaskWarning, stacklevel=2)
            grown[id(parameter)] = found
    return count_allowed(model) + sum(grown.values())


def count_allowed(model: nn.Module) -> int:
    """Count the parameters that masks let be non-zero, whatever is there.

    Example:
        >>> count_allowed(nn.Linear(4, 2))
        10
    """
    masks = {id(parameter): mask for _, parameter, mask in masked_parameters(model)}
    return sum(
        int(masks[id(parameter)].count_nonzero()) if id(parameter) in masks else parameter.numel()
        for parameter in model.parameters()
    )


def sentence(name: str, grown: int) -> str:
    """The message about a parameter whose mask does not hold, with the cause and the remedy.

    Example:
        >>> sentence("0.weight", 3).split(": ")[0]
        '3 masked entries of `0.weight` are not zero'
    """
    return (
        f"{grown} masked entries of `{name}` are not zero: something wrote to the weight outside of an optimizer step, "
        "such as an adapter that was merged into it, or weights that were copied or averaged in a loop. "
        '`fpe.merge(model)` lets these entries be non-zero from now on, and `fpe.merge(model, keep="masks")` sets '
        "them to zero."
    )


def _grown(parameter: Tensor, mask: Tensor) -> int:
    """How many masked entries are not zero."""
    value: Any = parameter.detach()
    if hasattr(value, "full_tensor"):  # masks are whole, weights may be shards
        value = value.full_tensor()
    if value.is_meta or not value.numel():
        return 0
    # A piece at a time, so that no third tensor of the weight's size is there.
    rows = max(1, AT_ONCE * len(value) // value.numel())
    return sum(int((part.ne(0) & ~kept).sum()) for part, kept in zip(value.split(rows), mask.split(rows), strict=True))
