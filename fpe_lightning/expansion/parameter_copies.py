"""Copies of parameters that an optimizer keeps besides its state: dicts by parameter, and lists in their order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping
from typing import Any

from torch import Tensor
from typing_extensions import override

from fpe_lightning.expansion.optimizer_parts import attributes_of, groups_of, held_by


class Copies:
    """Entries that an optimizer keeps for parameters besides its state, in the form of an optimizer's state.

    Attributes:
        owner: The optimizer, or its wrapper.
        name: The attribute, for messages.
        source: The attribute's value.
        param_groups: The groups of the owner.
        state: A view by parameter; changes write into the attribute.
    """

    def __init__(self, owner: Any, name: str, source: Any, state: MutableMapping[Any, Any]) -> None:
        self.owner, self.name, self.source, self.state = owner, name, source, state
        self.param_groups = groups_of(owner)

    def renew(self, new: Collection[Tensor]) -> None:
        """Make copies for new parameters, and in place of copies that have another shape than their parameter."""
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            copy = self.state.get(parameter, {}).get(self.name)
            # `in` would compare tensors entry by entry.
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


def copies_in(part: Any, known: set[int]) -> Iterator[Copies]:
    """Entries that a part keeps for each parameter besides its state: dicts by parameter, and lists in their order."""
    groups, held = groups_of(part), held_by(part)
    for name, value in attributes_of(part):
        # State that two attributes share follows once.
        if id(value) in known or not value:
            continue
        # By parameter: a dict whose keys are parameters.
        if isinstance(value, MutableMapping) and any(id(key) in held for key in value):
            yield Copies(part, name, value, _ByParameter(value, name, groups))
        elif isinstance(value, list):
            # By position: a list for each group, or one list where there is one group.
            nested = len(value) == len(groups) and all(isinstance(each, list) for each in value)
            flat = [parameter for group in groups for parameter in group["params"]]
            if nested and all(_aligned(each, group["params"]) for each, group in zip(value, groups, strict=True)):
                yield Copies(part, name, value, _ByPosition(list(zip(groups, value, strict=True)), name))
            elif len(groups) == 1 and _aligned(value, flat):
                yield Copies(part, name, value, _ByPosition([(groups[0], value)], name))
    # Groups may hold such lists under a name of their own.
    for number, group in enumerate(groups):
        for name, value in group.items():
            if name != "params" and _aligned(value, group["params"]):
                label = f"param_groups[{number}][{name!r}]"
                yield Copies(part, label, value, _ByPosition([(group, value)], label))


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
