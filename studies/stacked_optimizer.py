"""Optimizers of several networks as one over their stacked weights, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.adam import adam

ELEMENTWISE = (SGD, Adam, AdamW)
"""Optimizers that update each weight from its own history, so that stacking changes nothing."""


def stack_optimizers(
    optimizers: Sequence[Optimizer], owned: Sequence[Sequence[Tensor]], stacked: Sequence[Tensor]
) -> Optimizer:
    """Make one optimizer over stacked tensors that goes on where those of the networks stand.

    Args:
        optimizers: One for each network; SGD, Adam or AdamW with one parameter group and equal options.
        owned: For each stacked tensor, the parameter of every network that it holds.
        stacked: Tensors whose first axis is the networks.

    Returns:
        An optimizer of the same class and options; its state is a copy.

    Raises:
        ValueError: If the optimizers differ in class, options or progress, or do not hold the networks' parameters.

    Example:
        >>> layers = [torch.nn.Linear(2, 1, bias=False) for _ in range(2)]
        >>> optimizers = [Adam(layer.parameters(), lr=0.1) for layer in layers]
        >>> stacked = torch.stack([layer.weight.detach() for layer in layers])
        >>> stack_optimizers(optimizers, [[layer.weight for layer in layers]], [stacked]).param_groups[0]["lr"]
        0.1
    """
    kind, options = type(optimizers[0]), _options(optimizers[0])
    if kind not in ELEMENTWISE:
        raise ValueError(f"Networks train together under SGD, Adam or AdamW, found {kind.__name__}.")
    for network, optimizer in enumerate(optimizers):
        if type(optimizer) is not kind or _options(optimizer) != options:
            raise ValueError(f"Optimizer {network} of a stack differs from the first in class or options.")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if len(optimizer.param_groups) != 1 or held != {id(row[network]) for row in owned}:
            raise ValueError(f"Optimizer {network} has to hold all parameters of its network, in one group.")
    together = kind([{"params": list(stacked), **options}], lr=options["lr"])
    for row, value in zip(owned, stacked, strict=True):
        states = [optimizer.state.get(parameter, {}) for optimizer, parameter in zip(optimizers, row, strict=True)]
        state = _stack_states(states, value)
        if state:
            together.state[value] = state
    return together


def _options(optimizer: Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}


def _is_per_weight(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dim() > 0


def _stack_states(states: Sequence[dict[str, Any]], value: Tensor) -> dict[str, Any]:
    stacked: dict[str, Any] = {}
    if any(state.keys() != states[0].keys() for state in states):
        raise ValueError("Optimizers of a stack have to be equally far: some have state where others have none.")
    for key, first in states[0].items():
        entries = [state[key] for state in states]
        if _is_per_weight(first):
            stacked[key] = torch.stack(entries).view_as(value)
        elif any(entry != first for entry in entries):
            raise ValueError(f"Optimizers of a stack have to be equally far, found `{key}` from {set(entries)}.")
        else:
            stacked[key] = first.clone() if isinstance(first, Tensor) else first
    return stacked


def update(optimizer: Optimizer) -> None:
    """Step an optimizer of tensors on the CPU, to the same bits as ``optimizer.step()``.

    Around a step torch looks for a CUDA device, among other things. That costs a build with CUDA a quarter of the step
    of a stack; a fused Adam that has begun is called without it.

    Args:
        optimizer: With one parameter group and no hooks.

    Example:
        >>> value = torch.zeros(2)
        >>> value.grad = torch.ones(2)
        >>> optimizer = Adam([value], lr=0.1, fused=True)
        >>> update(optimizer), update(optimizer), value
        (None, None, tensor([-0.2000, -0.2000]))
    """
    (group,) = optimizer.param_groups
    values: list[Tensor] = group["params"]
    states = [optimizer.state.get(value) for value in values]
    if type(optimizer) is not Adam or not group["fused"] or group["amsgrad"] or not all(states):
        optimizer.step()
        return
    history = {key: [state[key] for state in states if state] for key in ("exp_avg", "exp_avg_sq", "step")}
    beta1, beta2 = group["betas"]
    adam(
        values,
        [value.grad for value in values if value.grad is not None],
        history["exp_avg"],
        history["exp_avg_sq"],
        [],
        history["step"],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        **{key: group[key] for key in ("lr", "weight_decay", "eps", "maximize")},
    )


def unstack_optimizer(
    together: Optimizer,
    stacked: Sequence[Tensor],
    optimizers: Sequence[Optimizer],
    owned: Sequence[Sequence[torch.nn.Parameter]],
) -> None:
    """Write the state of a stacked optimizer back into those of the networks.

    Args:
        together: From :func:`stack_optimizers`.
        stacked: The tensors that it holds.
        optimizers: One for each network; changed in place.
        owned: For each stacked tensor, the parameter of every network.
    """
    for row, value in zip(owned, stacked, strict=True):
        for network, (parameter, optimizer) in enumerate(zip(row, optimizers, strict=True)):
            optimizer.state[parameter] = {
                key: entry[network].view_as(parameter).clone()
                if _is_per_weight(entry)
                else (entry.clone() if isinstance(entry, Tensor) else entry)
                for key, entry in together.state.get(value, {}).items()
            }
