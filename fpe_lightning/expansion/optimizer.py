"""Optimizer state (moments and the like) is copied to the children of the weights that it belongs to."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.expansion.parameter_copies import Copies
from fpe_lightning.expansion.parts import part_of
from fpe_lightning.expansion.state_probe import PROBE, fits, holds_matrices, state_of_other_shape
from fpe_lightning.expansion.wrappers import is_wrapper
from fpe_lightning.sparse.exchange import States, exchange_parameters

REFUSED = {
    "LBFGS": "it keeps one flat history over all parameters together, which cannot follow single weights",
    "Muon": "it mixes the entries of a matrix, so that masked weights would grow back",
    "ZeroRedundancyOptimizer": "it assigns parameters to processes when it is made, and keeps the old ones",
}
"""Optimizers that cannot continue after a split, and why."""


def follow_states(draft: Draft, optimizers: list[Optimizer], averages: Iterable[nn.Module] = ()) -> States:
    """The state of every parameter that changes; the optimizers are not touched.

    State of the weight's shape (moments, sums of squares), or with some of its sizes 1 (factored moments), is copied
    and masked as the weight is; numbers and one-element tensors (step counts) stay as they are.

    Args:
        draft: The expansion about to be committed.
        optimizers: The optimizers that may hold some of its parameters.
        averages: Copies that change with the model, whose parameters the optimizers may hold too.

    Returns:
        ``(optimizer, old parameter, new state)`` for each parameter that keeps its state and is not put in
        place by itself.

    Raises:
        ValueError: If an optimizer cannot continue, or holds state of another shape that cannot be copied.
    """
    # Copies of the model may be in an optimizer too, as those of a schedule-free one are.
    drafts = {draft.original: draft for draft in draft.tensors.values()}
    for average, each in itertools.product(averages, draft.tensors.values()):
        module = part_of(average, each.owner)
        if module is not None and each.name in module._parameters:
            drafts[module.get_parameter(each.name)] = each
    states: States = []
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        # An optimizer that holds nothing that changes may be of any kind.
        held = [p for group in optimizer.param_groups for p in group["params"] if p in drafts]
        reason = next((REFUSED[c.__name__] for c in type(optimizer).__mro__ if c.__name__ in REFUSED), None)
        if held and reason:
            raise ValueError(f"{kind} cannot continue after a split: {reason}. Use SGD, Adam, AdamW or another.")
        others: dict[int, tuple[str, tuple[int, ...]] | None] = {}
        for parameter in held:
            state = optimizer.state.get(parameter)
            each = drafts[parameter]
            # Tensors that are put in place by themselves bring their state along then.
            if state and not each.separate and (is_wrapper(optimizer) or not each.reset_state):
                if parameter.dim() > 1 and parameter.dim() not in others and not is_wrapper(optimizer):
                    others[parameter.dim()] = state_of_other_shape(optimizer, parameter.dim())
                if other := others.get(parameter.dim()):
                    raise ValueError(
                        f"{kind} state `{other[0]}` of `{each.owner}.{each.name}` does not follow a weight entry by "
                        f"entry: a weight of shape {tuple(PROBE[: parameter.dim()])} has one of shape {other[1]}; "
                        'expand with optimizer_state="reset" to drop its state.'
                    )
                states.append((optimizer, parameter, _follow(each, state, kind)))
    return states


def _follow(draft: DraftTensor, state: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {key: _follow_entry(draft, value, f"{kind} state `{key}`") for key, value in state.items()}


def _follow_entry(draft: DraftTensor, value: Any, what: str) -> Any:
    if isinstance(value, deque):  # such as the last gradients
        return deque((_follow_entry(draft, entry, what) for entry in value), value.maxlen)
    if isinstance(value, (list, tuple)):
        return type(value)(_follow_entry(draft, entry, what) for entry in value)
    if isinstance(value, dict):
        return {key: _follow_entry(draft, entry, what) for key, entry in value.items()}
    if holds_matrices(value):
        raise ValueError(
            f"{what} of `{draft.owner}.{draft.name}` is an object with matrices ({type(value).__name__}), which does "
            'not follow a weight; expand with optimizer_state="reset" to drop its state.'
        )
    if not isinstance(value, Tensor) or value.numel() == 1:
        # The moments of a one-element weight have its shape; other values of one element are counts.
        return draft.follow(value) if _fits(draft, value) else copy.deepcopy(value)
    if not _fits(draft, value):
        raise ValueError(
            f"{what} of `{draft.owner}.{draft.name}` has shape {tuple(value.shape)}, which does not follow a weight of "
            f'shape {tuple(draft.original.shape)}; expand with optimizer_state="reset" to drop its state.'
        )
    return draft.follow(value)


def _fits(draft: DraftTensor, value: Any) -> bool:
    return isinstance(value, Tensor) and fits(value, draft.original.shape)


def hand_over(optimizers: Sequence[Optimizer], before: Mapping[str, nn.Parameter], model: nn.Module) -> None:
    """Let optimizers hold a model's parameters in the places of those that it had before its structure was rebuilt.

    Args:
        optimizers: Changed in place; they drop the state of replaced parameters.
        before: The parameters that the model had, by name.
        model: The model.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 2)
        >>> before, optimizer = dict(layer.named_parameters()), torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> layer.weight = nn.Parameter(torch.zeros(4, 4))
        >>> hand_over([optimizer], before, layer)
        >>> optimizer.param_groups[0]["params"][0] is layer.weight
        True
    """
    now = dict(model.named_parameters())
    replaced = {old: now[name] for name, old in before.items() if name in now and now[name] is not old}
    exchange_parameters(optimizers, replaced)
    for each in optimizers:
        if isinstance(each, Copies):
            each.renew(replaced.values())
