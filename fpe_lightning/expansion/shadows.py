"""Averages of weights that are no modules: lists in the order of the parameters, or dicts by their names.

``EMAModel`` of diffusers, ``torch_ema`` and many projects keep their average so. A split changes such an average by way
of a module of the same structure that holds the tensors for the time of the split.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fpe_lightning.expansion.parts import names_of

Tensors = list[Any] | dict[Any, Any]


@dataclass
class Shadow:
    """Tensors that average a part of a model.

    Attributes:
        tensors: The list or dict that holds them; changed in place.
        keys: The place of each tensor, by the name of its parameter in the part.
        student: Qualified name of the part; empty for the whole model.
        module: A copy of the part's structure that holds the tensors.
        holder: The object that the list or dict belongs to.
    """

    tensors: Tensors
    keys: Mapping[str, Any]
    student: str
    module: nn.Module
    holder: Any

    def write_back(self, before: Mapping[str, nn.Parameter], after: Mapping[str, nn.Parameter]) -> None:
        """Put the tensors of the module where they came from, and let weak references follow their parameters.

        Args:
            before: The parameters of the model before the split, by name.
            after: The same after it.
        """
        replaced = {parameter: after[name] for name, parameter in before.items()}
        now = dict(self.module.named_parameters())
        for name, key in self.keys.items():
            self.tensors[key] = now[name].detach()
        # `ExponentialMovingAverage` of torch_ema refers to its parameters weakly, and would miss the new ones.
        for value in getattr(self.holder, "__dict__", {}).values():
            for place, each in enumerate(value if isinstance(value, list) else ()):
                old: Any = each() if isinstance(each, weakref.ref) else None
                if old in replaced:
                    value[place] = weakref.ref(replaced[old])


def find_shadows(holders: Iterable[Any], model: nn.Module) -> list[Shadow]:
    """Find the averages that some objects hold of a model or of a part of it.

    Args:
        holders: Objects; each list and dict among their attributes is looked at, and the object if it is one itself.
        model: The model.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> [shadow.student for shadow in find_shadows([[each.detach().clone() for each in layer.parameters()]], layer)]
        ['']
    """
    holders = [holder for holder in holders if not isinstance(holder, (nn.Module, Tensor, type))]
    values = [(holder, value) for holder in holders for value in _containers(holder)]
    if not values:
        return []
    # A list of the parameters themselves, as an optimizer holds, averages nothing.
    own = {id(parameter) for parameter in model.parameters()}
    forms = [(name, part, dict(part.named_parameters())) for name, part in names_of(model)]
    found = []
    for holder, value in values:
        entries = list(value.values() if isinstance(value, dict) else value)
        # One tensor of a fitting shape may be anything.
        if len(entries) < 2 or any(not isinstance(each, Tensor) or id(each) in own for each in entries):
            continue
        # The first that fits is the outermost part.
        for name, part, parameters in forms:
            keys = _keys(value, parameters)
            if keys is not None:
                found.append(Shadow(value, keys, name, _holding(part, value, keys), holder))
                break
    return found


def shadows_of(holders: Iterable[Any], model: nn.Module) -> list[Shadow]:
    """The averages of :func:`find_shadows`, at least one in each object.

    Raises:
        TypeError: If an object holds none.

    Example:
        >>> shadows_of([], nn.Linear(2, 1))
        []
    """
    found = []
    for holder in holders:
        own = find_shadows([holder], model)
        if not own:
            raise TypeError(
                "`averages` takes modules, names of parts of the model, and objects that hold a tensor for each "
                f"parameter of a part, of its shape; found {type(holder).__name__}."
            )
        found += own
    return found


def _containers(holder: Any) -> Iterator[Tensors]:
    values = [holder] if isinstance(holder, (list, dict)) else list(getattr(holder, "__dict__", {}).values())
    return (value for value in values if isinstance(value, (list, dict)) and value)


def _keys(tensors: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any] | None:
    """The place of each tensor by the name of its parameter: all parameters, or all that need a gradient."""
    # Some averages leave out what does not train.
    trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    for each in (parameters, trainable):
        if len(each) != len(tensors):
            continue
        keys = {name: name if isinstance(tensors, dict) else place for place, name in enumerate(each)}
        if isinstance(tensors, dict) and any(name not in tensors for name in keys):
            continue
        if all(tensors[key].shape == each[name].shape for name, key in keys.items()):
            return keys
    return None


def _holding(part: nn.Module, tensors: Tensors, keys: Mapping[str, Any]) -> nn.Module:
    """A module of the structure of a part, layouts included, with tensors in the places of its parameters."""
    # Tied parameters stay tied: one new parameter for each old one.
    known: dict[int, nn.Parameter | None] = {id(None): None}
    for name, parameter in part.named_parameters():
        value = tensors[keys[name]] if name in keys else parameter.detach()
        known[id(parameter)] = nn.Parameter(value, requires_grad=False)

    def shell(module: nn.Module) -> nn.Module:
        # No constructor is called, as it may take any arguments. Attributes are shared; dicts are copied, because the
        # split changes them.
        made = object.__new__(type(module))
        values = {key: copy.copy(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        values["_parameters"] = {key: known[id(value)] for key, value in module._parameters.items()}
        values["_modules"] = {key: child and shell(child) for key, child in module._modules.items()}
        vars(made).update(values)
        return made

    return shell(part)
