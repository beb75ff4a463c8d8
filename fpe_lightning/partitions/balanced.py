"""Assign inputs to children in equal shares, in the order of random keys: the core of most partitions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**21
"""Inputs that are sorted at a time, which bounds the memory in use."""


def balanced(keys: Tensor, alive: Tensor, alpha: int) -> Tensor:
    """Assign the alive inputs of each row to ``alpha`` children in turn, in the order of ``keys``.

    Args:
        keys: float32 ``(rows, inputs)``, not negative; ties go by position.
        alive: Bool ``(rows, inputs)``; other inputs come last.
        alpha: Number of children.

    Returns:
        int64 ``(rows, inputs)``, the child of each input; alive inputs are balanced to within one.

    Example:
        >>> balanced(torch.tensor([[0.3, 0.1, 0.2, 0.4]]), torch.ones(1, 4, dtype=torch.bool), 2)
        tensor([[0, 0, 1, 1]])
    """
    rows, inputs = keys.shape
    place = torch.arange(inputs)
    child = torch.empty(rows, inputs, dtype=torch.int64)
    chunk = max(1, AT_ONCE // max(1, inputs))
    for some, living, dealt in zip(keys.split(chunk), alive.split(chunk), child.split(chunk), strict=True):
        # The bits of floats that are not negative order as integers do. With the position below them a single sort of
        # integers, several times faster than a stable argsort, gives the order and breaks ties.
        bits = (some if bool(living.all()) else some.masked_fill(~living, torch.inf)).view(torch.int32).long()
        order = torch.from_numpy(np.sort(((bits << 32) | place).numpy(), axis=-1)) & (2**32 - 1)
        dealt.scatter_(-1, order, (place % alpha).expand_as(order))
    return child
