"""Deal inputs to children as a deck of cards: what most partitions come down to."""

from __future__ import annotations

import torch
from torch import Tensor


def deal(keys: Tensor, alive: Tensor, alpha: int) -> Tensor:
    """Deal the alive inputs of each row to ``alpha`` children in the order of ``keys``, one after the other.

    Args:
        keys: ``(rows, inputs)``; ties go by position.
        alive: Bool ``(rows, inputs)``; what is not alive comes last.
        alpha: Number of children.

    Returns:
        int64 ``(rows, inputs)``, the child of each input; alive inputs are balanced to within one.

    Example:
        >>> deal(torch.tensor([[0.3, 0.1, 0.2, 0.4]]), torch.ones(1, 4, dtype=torch.bool), 2)
        tensor([[0, 0, 1, 1]])
    """
    order = keys.masked_fill(~alive, torch.inf).argsort(dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(keys.shape[-1]).expand_as(order))
    return rank % alpha
