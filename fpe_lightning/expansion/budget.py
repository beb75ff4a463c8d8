"""Exact non-zero accounting, and which weights go when there are too many.

A budget rule names the weights of a site (producers and consumers together) that make room for the copies:

- ``"total"`` (the paper): one magnitude order over incoming and outgoing weights together;
- ``"incoming"``: only incoming weights make room, so that no outgoing copy is lost;
- ``"outgoing"``: only outgoing weights make room, so that every input of a parent stays with one of its children;
- ``"columns"`` and ``"blocks"``: whole columns and blocks make room (see :mod:`fpe_lightning.expansion.room`).

Ties: copied outgoing weights tie exactly in magnitude. Among equals the weight that comes first goes first: producers
before consumers, then in row-major order. The rule needs no stable sort and is the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpe_lightning.sparse.masked import masked_parameters

STRUCTURED = ("columns", "blocks")
BUDGETS = ("total", "incoming", "outgoing", *STRUCTURED)


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
        int(masks[id(parameter)].sum()) if id(parameter) in masks else parameter.numel()
        for parameter in model.parameters()
    )


def remove_smallest(weights: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> list[Tensor]:
    """Drop the ``count`` weights of smallest magnitude from the masks of several tensors taken together.

    Args:
        weights: Tensors of any shapes.
        masks: Bool tensors of the same shapes; only entries that are True can be dropped.
        count: How many entries to drop, at least 0.

    Returns:
        New masks with exactly ``count`` fewer entries. Ties go by the rule in the module's docstring.

    Raises:
        ValueError: If there are not more than ``count`` entries.

    Example:
        >>> weight = torch.tensor([[0.5, -0.1], [0.1, 0.9]])
        >>> remove_smallest([weight], [torch.ones(2, 2, dtype=torch.bool)], 1)
        [tensor([[ True, False],
                [ True,  True]])]
    """
    alive = sum(int(mask.sum()) for mask in masks)
    if count >= alive > 0 or count > alive:
        raise ValueError(f"Cannot remove {count} of {alive} weights: too little is left.")
    if count == 0:
        return [mask.clone() for mask in masks]
    # Half precision widens exactly, and not every device orders it.
    magnitude = torch.cat(
        [
            weight.detach().abs()[mask].to(torch.promote_types(weight.dtype, torch.float32))
            for weight, mask in zip(weights, masks, strict=True)
        ]
    )
    threshold = magnitude.kthvalue(count).values
    goes = magnitude < threshold
    ties = (magnitude == threshold).nonzero().squeeze(1)
    goes[ties[: count - int(goes.sum())]] = True
    kept = []
    for mask, gone in zip(masks, goes.split([int(mask.sum()) for mask in masks]), strict=True):
        kept.append(mask.clone())
        kept[-1][mask] = ~gone
    return kept
