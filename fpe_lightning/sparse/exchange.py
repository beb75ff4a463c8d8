"""Exchange a parameter: one like it in another shape, and optimizers that hold the new one in the old one's place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

States = list[tuple[Optimizer, nn.Parameter, dict[str, Any]]]
"""``(optimizer, old parameter, state of the new one)``."""


def exchange_parameters(
    optimizers: Iterable[Optimizer], replaced: Mapping[nn.Parameter, nn.Parameter], states: States | None = None
) -> None:
    """Let optimizers hold new parameters in the places of old ones.

    Args:
        optimizers: Changed in place. Groups, their options and the order of parameters stay; state of old parameters
            goes.
        replaced: The new parameter for each old one.
        states: State of new parameters, by the old ones.

    Example:
        >>> old, new = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4))
        >>> optimizer = torch.optim.SGD([old], lr=0.1)
        >>> exchange_parameters([optimizer], {old: new})
        >>> optimizer.param_groups[0]["params"][0] is new
        True
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # In place, as wrappers of an optimizer may hold the same list.
            group["params"][:] = [replaced.get(parameter, parameter) for parameter in group["params"]]
        for old in replaced:
            optimizer.state.pop(old, None)
    for optimizer, old, state in states or ():
        optimizer.state[replaced[old]] = state


def parameter_like(old: nn.Parameter, value: Tensor) -> nn.Parameter:
    """A parameter of the same class, settings and gradient hooks as ``old``, with its own copy of ``value``.

    Example:
        >>> old = nn.Parameter(torch.zeros(2), requires_grad=False)
        >>> parameter_like(old, torch.ones(4)).requires_grad
        False
    """
    data = (
        value.clone(memory_format=torch.contiguous_format) if value.data_ptr() == old.data_ptr() else value.contiguous()
    )
    new = type(old)(data, requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
    for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        # The same dict, so that handles given out before still remove their hooks.
        if getattr(old, hooks):
            setattr(new, hooks, getattr(old, hooks))
    return new
