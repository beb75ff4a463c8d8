"""Optimizers around optimizers (Lookahead, schedule-free, accelerate's): whatever they hold for a parameter follows it.

A wrapper shares the groups of the optimizer inside of it, and may keep copies of the parameters: in its state, in a
dict of its own by parameter, or in lists in the order of the parameters. Each such place is a holder, an object with
``param_groups`` and ``state`` as an optimizer has, so that a split exchanges parameters in all places alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fpe_lightning.expansion.optimizer_parts import as_optimizers, attributes_of, held_by, listed, parts_of
from fpe_lightning.expansion.parameter_copies import Copies, copies_in


def holders_of(optimizer: Any) -> list[Any]:
    """All places where optimizers hold parameters: the optimizers, wrapped ones, and copies next to their state.

    Places that share groups and state with another are left out.

    Raises:
        TypeError: If something is no optimizer.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = __import__("torch").optim.SGD(layer.parameters(), lr=0.1)
        >>> optimizer.slow = {parameter: parameter.detach().clone() for parameter in layer.parameters()}
        >>> [type(holder).__name__ for holder in holders_of(optimizer)]
        ['SGD', 'Copies']
    """
    holders: list[Any] = []
    # The innermost first: a wrapper that shows the groups and the state of the inner optimizer adds nothing.
    for part in reversed(as_optimizers(optimizer)):
        if not any(each.state is part.state and each.param_groups is part.param_groups for each in holders):
            holders.append(part)
    known = {id(each.state) for each in holders}
    for part in (part for each in listed(optimizer) for part in parts_of(each)):
        for copies in copies_in(part, known):
            known.add(id(copies.source))
            holders.append(copies)
    return holders


def is_wrapper(holder: Any) -> bool:
    """Whether a holder keeps copies of parameters for a wrapper, which a reset of the optimizer's state has to keep.

    Example:
        >>> is_wrapper(__import__("torch").optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
        False
    """
    return isinstance(holder, Copies) or len(parts_of(holder)) > 1


def check_holds(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that would not train the model after a split, as it holds none of its parameters.

    Raises:
        TypeError: If something is no optimizer.
        ValueError: Naming the optimizer.

    Example:
        >>> layer, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> check_holds(layer, __import__("torch").optim.SGD(other.parameters(), lr=0.1))
        Traceback (most recent call last):
        ...
        ValueError: SGD holds none of the model's parameters: pass the optimizer that trains this model.
    """
    # Each part of a wrapper has to hold parameters of the model, or steps would train copies.
    own = {id(parameter) for parameter in model.parameters()}
    given = listed(optimizer)
    for number, each in enumerate(given):
        parts = parts_of(each)
        empty = next((part for part in parts if not held_by(part) & own), None)
        if empty is None:
            continue
        name = type(parts[0]).__name__
        if empty is not parts[0] and held_by(parts[0]) & own:
            raise ValueError(
                f"{name} wraps {type(empty).__name__}, which holds none of the model's parameters but copies of them, "
                "and a split cannot follow these; wrap the optimizer again after the split."
            )
        several = f"Optimizer {number} of {len(given)} ({name})" if len(given) > 1 else name
        remedy = "leave it out" if len(given) > 1 else "pass the optimizer that trains this model"
        raise ValueError(f"{several} holds none of the model's parameters: {remedy}.")


def check_copies(optimizer: Any, shapes: Iterable[tuple[int, ...]]) -> None:
    """Refuse copies of parameters that belong to them in an unknown way, before they stay behind in their old shapes.

    Args:
        optimizer: One optimizer, several or none.
        shapes: The shapes of all parameters that change.

    Raises:
        ValueError: Naming the optimizer and the attribute.

    Example:
        >>> check_copies(None, [(2, 1)])
    """
    changing = {tuple(shape) for shape in shapes if len(shape) > 1}
    for part in (part for each in listed(optimizer) for part in parts_of(each)):
        # State and known copies follow a split; any other tensor of a changing shape would stay behind.
        followed = {id(getattr(part, "state", None)), *(id(each.source) for each in copies_in(part, set()))}
        for name, value in attributes_of(part):
            held = held_by(part)
            for tensor in _tensors(value, followed):
                if tuple(tensor.shape) in changing and id(tensor) not in held:
                    raise ValueError(
                        f"{type(part).__name__} keeps a tensor of a parameter's shape in `{name}`, which cannot follow "
                        "a split: use the optimizer without it, or make a new one after the split."
                    )


def _tensors(value: Any, followed: set[int], depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and id(value) not in followed and isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each, followed, depth - 1)
