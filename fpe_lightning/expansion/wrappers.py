"""Optimizers around optimizers (Lookahead, schedule-free, accelerate's): whatever they hold for a parameter follows it.

A wrapper shares the groups of the optimizer inside of it, and may keep copies of the parameters: in its state, in a
dict of its own by parameter, or in lists in the order of the parameters. Each such place is a holder, an object with
``param_groups`` and ``state`` as an optimizer has, so that a split exchanges parameters in all places alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override


class Holder(Protocol):
    """An optimizer, or a place where one keeps something for each parameter."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters, as in ``torch.optim.Optimizer``."""
        ...

    @property
    def state(self) -> Any:
        """The entries of each parameter, by parameter: a dict of tensors and numbers."""
        ...


class Copies:
    """Entries that an optimizer keeps for parameters besides its state, in the form of an optimizer's state.

    Attributes:
        owner: The optimizer, or its wrapper.
        name: The attribute, for messages.
        param_groups: The groups of the owner.
        state: A view by parameter; changes write into the attribute.
    """

    def __init__(self, owner: Any, name: str, state: MutableMapping[Any, Any]) -> None:
        self.owner, self.name, self.state = owner, name, state
        self.param_groups = _groups(owner)

    def renew(self, new: Collection[Tensor]) -> None:
        """Make copies for new parameters, and in place of copies that have another shape than their parameter."""
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            copy = self.state.get(parameter, {}).get(self.name)
            if any(parameter is each for each in new) if copy is None else copy.shape != parameter.shape:
                self.state[parameter] = {self.name: parameter.detach().clone()}


class _ByParameter(MutableMapping[Any, dict[str, Any]]):
    """A dict from parameters to tensors, as one from parameters to dicts of tensors."""

    def __init__(self, values: MutableMapping[Any, Any], name: str, groups: list[dict[str, Any]]) -> None:
        self.values_by_parameter, self.name, self.groups = values, name, groups

    @override
    def __getitem__(self, parameter: Any) -> dict[str, Any]:
        value = self.values_by_parameter[parameter]
        return value if isinstance(value, dict) else {self.name: value}

    @override
    def __setitem__(self, parameter: Any, state: dict[str, Any]) -> None:
        values = self.values_by_parameter
        values[parameter] = state[self.name] if set(state) == {self.name} else state
        # In the order of the groups again: code may pair the values with the parameters.
        for group in self.groups:
            for each in group["params"]:
                if each in values:
                    values[each] = values.pop(each)

    @override
    def __delitem__(self, parameter: Any) -> None:
        del self.values_by_parameter[parameter]

    @override
    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.values_by_parameter))

    @override
    def __len__(self) -> int:
        return len(self.values_by_parameter)


class _ByPosition(MutableMapping[Any, dict[str, Any]]):
    """Lists of tensors in the order of the parameters of each group, as a dict from parameters to dicts of tensors."""

    def __init__(self, lists: list[tuple[dict[str, Any], list[Any]]], name: str) -> None:
        self.lists, self.name = lists, name

    def _place(self, parameter: Any) -> tuple[list[Any], int]:
        for group, values in self.lists:
            for position, each in enumerate(group["params"]):
                if each is parameter:
                    return values, position
        raise KeyError(parameter)

    @override
    def __getitem__(self, parameter: Any) -> dict[str, Any]:
        values, position = self._place(parameter)
        return {self.name: values[position]}

    @override
    def __setitem__(self, parameter: Any, state: dict[str, Any]) -> None:
        values, position = self._place(parameter)
        values[position] = state[self.name]

    @override
    def __delitem__(self, parameter: Any) -> None:
        self._place(parameter)  # a list keeps its length; the new value takes the same place

    @override
    def __iter__(self) -> Iterator[Any]:
        return (parameter for group, _ in self.lists for parameter in list(group["params"]))

    @override
    def __len__(self) -> int:
        return sum(len(values) for _, values in self.lists)


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
    copies = [found for each in listed(optimizer) for part in parts_of(each) for found in _copies(part, known)]
    return [*holders, *copies]


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
    own = {id(parameter) for parameter in model.parameters()}
    given = listed(optimizer)
    for number, each in enumerate(given):
        parts = parts_of(each)
        empty = next((part for part in parts if not _held(part) & own), None)
        if empty is None:
            continue
        name = type(parts[0]).__name__
        if empty is not parts[0] and _held(parts[0]) & own:
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
        followed = {id(getattr(part, "state", None)), *(id(each.source) for each in _found(part, set()))}
        for name, value in _attributes(part):
            held = _held(part)
            for tensor in _tensors(value, followed):
                if tuple(tensor.shape) in changing and id(tensor) not in held:
                    raise ValueError(
                        f"{type(part).__name__} keeps a tensor of a parameter's shape in `{name}`, which cannot follow "
                        "a split: use the optimizer without it, or make a new one after the split."
                    )


def parts_of(optimizer: Any) -> list[Any]:
    """An optimizer and all that it wraps, the outermost first.

    Example:
        >>> len(parts_of(__import__("torch").optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)))
        1
    """
    parts = [optimizer]
    for part in parts:
        for _, value in _attributes(part):
            parts.extend(each for each in _optimizers(value) if all(each is not other for other in parts))
    return parts


class _Found:
    """An attribute that holds something for each parameter."""

    def __init__(self, name: str, source: Any, state: MutableMapping[Any, Any]) -> None:
        self.name, self.source, self.state = name, source, state


def _copies(part: Any, known: set[int]) -> Iterator[Copies]:
    for found in _found(part, known):
        known.add(id(found.source))
        yield Copies(part, found.name, found.state)


def _found(part: Any, known: set[int]) -> Iterator[_Found]:
    """Entries that a part keeps for each parameter besides its state: dicts by parameter, and lists in their order."""
    groups, held = _groups(part), _held(part)
    for name, value in _attributes(part):
        if id(value) in known or not value:
            continue
        if isinstance(value, MutableMapping) and any(id(key) in held for key in value):
            yield _Found(name, value, _ByParameter(value, name, groups))
        elif isinstance(value, list):
            nested = len(value) == len(groups) and all(isinstance(each, list) for each in value)
            flat = [parameter for group in groups for parameter in group["params"]]
            if nested and all(_aligned(each, group["params"]) for each, group in zip(value, groups, strict=True)):
                yield _Found(name, value, _ByPosition(list(zip(groups, value, strict=True)), name))
            elif len(groups) == 1 and _aligned(value, flat):
                yield _Found(name, value, _ByPosition([(groups[0], value)], name))
    for number, group in enumerate(groups):
        for name, value in group.items():
            if name != "params" and _aligned(value, group["params"]):
                label = f"param_groups[{number}][{name!r}]"
                yield _Found(label, value, _ByPosition([(group, value)], label))


def _aligned(values: Any, parameters: list[Any]) -> bool:
    """Whether a list holds a tensor for each parameter, of its shape and in its place."""
    return (
        isinstance(values, list)
        and len(values) == len(parameters) > 0
        and all(
            isinstance(value, Tensor) and value is not parameter and value.shape == parameter.shape
            for value, parameter in zip(values, parameters, strict=True)
        )
    )


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
    several = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    for each in several:
        if not hasattr(each, "__dict__") or not any(isinstance(part, Optimizer) for part in parts_of(each)):
            raise TypeError(f"`optimizer` takes one or several torch optimizers, found {each!r}.")
    return several


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, Optimizer):
        return True
    if isinstance(value, (type, nn.Module, Tensor, LRScheduler)) or not hasattr(value, "__dict__"):
        return False
    wraps = isinstance(getattr(value, "param_groups", None), list)
    return hasattr(value, "step") and (wraps or any(isinstance(each, Optimizer) for each in vars(value).values()))


def _attributes(part: Any) -> list[tuple[str, Any]]:
    """The attributes of an optimizer apart from its groups and its state, whatever kind of object it is."""
    return [(name, value) for name, value in vars(part).items() if name not in ("param_groups", "state", "defaults")]


def _optimizers(value: Any, depth: int = 2) -> Iterator[Any]:
    if _is_optimizer(value):
        yield value
    elif depth and isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _optimizers(each, depth - 1)


def _tensors(value: Any, followed: set[int], depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and id(value) not in followed and isinstance(value, (list, tuple, Mapping)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each, followed, depth - 1)


def _groups(part: Any) -> list[dict[str, Any]]:
    """The groups of an optimizer, or all those inside of a wrapper that has none of its own."""
    if hasattr(part, "param_groups"):
        return part.param_groups
    return [group for inner in parts_of(part)[1:] if hasattr(inner, "param_groups") for group in inner.param_groups]


def _held(part: Any) -> set[int]:
    return {id(parameter) for group in _groups(part) for parameter in group["params"]}
