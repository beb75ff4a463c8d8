"""Optimizers inside of optimizers: what ``optimizer=`` may be, and all that a wrapper wraps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def as_optimizers(optimizer: Any) -> list[Any]:
    """One optimizer, several or none, as a list of all optimizers, those that wrap others before these.

    Raises:
        TypeError: If something is no optimizer.

    Example:
        >>> as_optimizers(None)
        []
    """
    parts = [part for each in listed(optimizer) for part in parts_of(each)]
    return [part for part in parts if hasattr(part, "param_groups") and hasattr(part, "state")]


def parts_of(optimizer: Any) -> list[Any]:
    """An optimizer and all that it wraps, the outermost first.

    Example:
        >>> len(parts_of(__import__("torch").optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)))
        1
    """
    parts = [optimizer]
    # The list grows while it is walked through: what a part wraps is looked at in turn.
    for part in parts:
        for _, value in attributes_of(part):
            parts.extend(each for each in _optimizers(value) if all(each is not other for other in parts))
    return parts


def listed(optimizer: Any) -> list[Any]:
    """One optimizer, several or none, as a list.

    Raises:
        TypeError: If something is no optimizer.

    Example:
        >>> listed(None)
        []
    """
    if optimizer is None:
        return []
    # A wrapper need not be a torch optimizer, but has to hold one somewhere.
    several = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    for each in several:
        if not hasattr(each, "__dict__") or not any(isinstance(part, Optimizer) for part in parts_of(each)):
            raise TypeError(f"`optimizer` takes one or several torch optimizers, found {each!r}.")
    return several


def groups_of(part: Any) -> list[dict[str, Any]]:
    """The groups of an optimizer, or all those inside of a wrapper that has none of its own."""
    if hasattr(part, "param_groups"):
        return part.param_groups
    return [group for inner in parts_of(part)[1:] if hasattr(inner, "param_groups") for group in inner.param_groups]


def held_by(part: Any) -> set[int]:
    """The ids of the parameters that an optimizer holds."""
    return {id(parameter) for group in groups_of(part) for parameter in group["params"]}


def attributes_of(part: Any) -> list[tuple[str, Any]]:
    """The attributes of an optimizer apart from its groups and its state, whatever kind of object it is."""
    return [(name, value) for name, value in vars(part).items() if name not in ("param_groups", "state", "defaults")]


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, Optimizer):
        return True
    # A scheduler holds its optimizer, and does not wrap it.
    if isinstance(value, (type, nn.Module, Tensor, LRScheduler)) or not hasattr(value, "__dict__"):
        return False
    # Anything that steps and either shows groups or holds an optimizer.
    wraps = isinstance(getattr(value, "param_groups", None), list)
    return hasattr(value, "step") and (wraps or any(isinstance(each, Optimizer) for each in vars(value).values()))


def _optimizers(value: Any, depth: int = 2) -> Iterator[Any]:
    if _is_optimizer(value):
        yield value
    elif depth and isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _optimizers(each, depth - 1)
