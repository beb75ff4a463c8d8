"""What follows when weights move: their values, gradients and moments begin at zero, and copies take the same masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.parts import mirror, part_of, resolve_averages
from fpe_lightning.expansion.shadows import shadows_of
from fpe_lightning.expansion.teachers import find_teachers
from fpe_lightning.expansion.wrappers import holders_of
from fpe_lightning.rewiring.weights import Weight
from fpe_lightning.sparse.layout import layout_of
from fpe_lightning.sparse.moves import Growth


def copies_of_weights(model: nn.Module, optimizer: Any, averages: Iterable[Any], weights: Sequence[Weight]) -> Copies:
    """Find the copies of some weights: in averages (EMA), in teachers inside of the model, and in lists of tensors.

    Args:
        model: The model.
        optimizer: Its optimizers; a part that none of them trains may be a teacher.
        averages: Modules, names or globs of parts of the model, and objects that average tensors.
        weights: The weights.

    Returns:
        For each weight by name, modules that own a copy; the second element is whether the copy has structure of its
        own, which tensors in a list have not.

    Raises:
        ValueError: If a name in ``averages`` matches no part of the model.
        TypeError: If an object in ``averages`` holds no tensors of the model.

    Example:
        >>> copies_of_weights(nn.Linear(2, 1), None, (), [])
        {}
    """
    modules, others = resolve_averages(model, averages)
    roots = [(teacher.mirror(), True) for teacher in find_teachers(model, optimizer, modules)]
    for shadow in shadows_of(others, model):
        roots.append((mirror(shadow.student, shadow.module), False))
    found: Copies = {}
    for weight in weights:
        parts = [(part_or_none(root, weight.layer), own) for root, own in roots]
        found[weight.name] = [
            (part, own)
            for part, own in parts
            if part is not None
            and layout_of(part) is layout_of(weight.module)
            and getattr(part._parameters.get(weight.key), "shape", None) == weight.parameter.shape
        ]
    return {name: each for name, each in found.items() if each}


Copies = dict[str, list[tuple[nn.Module, bool]]]


def part_or_none(model: nn.Module, name: str) -> nn.Module | None:
    """A part of a copy by its name in the model; None where the copy has no such part."""
    try:
        return part_of(model, name)
    except AttributeError:
        return None


@torch.no_grad()
def apply_move(
    weight: Weight, dropped: Tensor, grown: Tensor, growth: Growth | None, optimizer: Any, copies: Copies
) -> None:
    """Move weights of one layer: change its structure, and set to zero what begins or ends there.

    Args:
        weight: Changed in place.
        dropped: Bool of the stored shape.
        grown: The same.
        growth: See :meth:`~fpe_lightning.sparse.moves.Moves.move`.
        optimizer: The optimizers that hold it; entries of their state that have its shape are set to zero where
            weights moved.
        copies: Other modules that follow.
    """
    moved = dropped | grown
    parameter = weight.parameter
    weight.moves.move(weight.module, weight.key, dropped, grown, growth)
    for module, key in weight.tied:
        if layout_of(module).moves is not None and weight.moves.held(module, key).shape == dropped.shape:
            weight.moves.move(module, key, dropped, grown, growth)
    parameter.masked_fill_(moved, 0)
    if parameter.grad is not None:
        parameter.grad.masked_fill_(moved, 0)
    for holder in holders_of(optimizer):
        for tensor in _tensors(holder.state.get(parameter, {})):
            if tensor.shape == moved.shape and tensor.numel() > 1:
                tensor.masked_fill_(moved.to(tensor.device), 0)
    for part, own in copies.get(weight.name, ()):
        value = part.get_parameter(weight.key)
        there = [each.to(value.device) for each in (dropped, grown, moved)]
        if own and layout_of(part).moves is not None:
            layout_of(part).moves.move(part, weight.key, there[0], there[1], growth)  # type: ignore[union-attr]
        value.masked_fill_(there[2], 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
