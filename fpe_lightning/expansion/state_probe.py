"""What state an optimizer of others keeps: entry by entry as the weight, or of the sides of a matrix."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PROBE = torch.Size((6, 10, 3, 5, 7))
"""Sizes of a parameter by which states are told apart: all differ."""


def state_of_other_shape(optimizer: Any, dim: int) -> tuple[str, tuple[int, ...]] | None:
    """A state that an optimizer keeps in another shape than that of its parameter, with its shape for ``PROBE``.

    A state may have the shape of a weight by accident: the factor of one side of a square matrix is square too. So the
    optimizer takes a step on a parameter whose sizes all differ, in a copy without its parameters and its state. Those
    of torch are known and not tried.

    Args:
        optimizer: Not changed.
        dim: Number of axes of the parameter.

    Returns:
        The key of the state and its shape; None where all states follow, or where the optimizer needs more than a step.

    Example:
        >>> state_of_other_shape(torch.optim.AdamW([torch.zeros(2, 2, requires_grad=True)]), 2) is None
        True
    """
    if type(optimizer).__module__.startswith("torch.") or not isinstance(optimizer, Optimizer):
        return None
    shape = PROBE[:dim]
    probe = nn.Parameter(torch.linspace(-1, 1, shape.numel()).view(shape))
    probe.grad = probe.detach().cos()
    # Not its methods: a scheduler replaces `step` by one that steps the optimizer itself. Nor hooks of the user.
    own = {name: value for name, value in vars(optimizer).items() if not callable(value)}
    own |= {"state": {}, "param_groups": []} | {name: {} for name in own if name.endswith("_hooks")}
    with torch.random.fork_rng([]):
        try:
            twin: Any = object.__new__(type(optimizer))
            vars(twin).update(copy.deepcopy(own))
            options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
            twin.state, twin.param_groups = defaultdict(dict), [{**copy.deepcopy(options), "params": [probe]}]
            type(optimizer).step(twin)
        except Exception:  # such as one that needs a closure; its state is judged by its shapes alone
            return None
    for key, value in twin.state.get(probe, {}).items():
        if isinstance(value, Tensor) and value.numel() > 1 and not fits(value, shape):
            return key, tuple(value.shape)
    return None


def fits(value: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor has the shape of a weight, or that of a factored moment, with some sizes 1, as Adafactor keeps.

    Example:
        >>> fits(torch.zeros(1, 3), torch.Size((2, 3))), fits(torch.zeros(3), torch.Size((2, 3)))
        (True, False)
    """
    if value.dim() != len(shape) or value.dim() == 0:
        return False
    return all(found in (1, size) for found, size in zip(value.shape, shape, strict=True))


def holds_matrices(value: Any) -> bool:
    """Whether an object of a class of its own has tensors, or lists of them, among its attributes.

    Example:
        >>> holds_matrices(torch.zeros(2, 2)), holds_matrices(nn.Linear(2, 2).weight)
        (False, False)
    """
    if isinstance(value, (Tensor, Mapping, list, tuple)) or not hasattr(value, "__dict__"):
        return False
    inside = [each for own in vars(value).values() for each in (own if isinstance(own, (list, tuple)) else [own])]
    return any(isinstance(each, Tensor) and each.numel() > 1 for each in inside)
