"""Tensors inside of arguments and results of any type: containers, dataclasses, objects."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

ATOMS = (Tensor, nn.Module, str, bytes, int, float, complex, type, types.FunctionType, types.ModuleType, type(None))
"""Values that are not looked into."""


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in a value, whatever holds them.

    Args:
        value: Anything that a forward takes or returns.
        seen: Objects that have been looked into already.

    Yields:
        The tensors.

    Example:
        >>> import torch
        >>> box = types.SimpleNamespace(x=torch.zeros(2), more={"y": [torch.ones(3)]})
        >>> [len(tensor) for tensor in tensors_in((box, 1))]
        [2, 3]
    """
    seen = set() if seen is None else seen
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif not isinstance(leaf, ATOMS) and id(leaf) not in seen:
            seen.add(id(leaf))
            for part in _parts(leaf):
                yield from tensors_in(part, seen)


def _parts(value: Any) -> Iterator[Any]:
    """The entries of a container that pytrees do not know, and the attributes of an object."""
    if isinstance(value, Mapping):
        yield list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield list(value)
    yield list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        names = getattr(kind, "__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            yield getattr(value, name, None)


def replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with other tensors in it; the value itself is left as it is.

    Args:
        value: Anything that a forward takes.
        change: Called once with each tensor.

    Returns:
        Copies of all containers and objects. An object that cannot be copied is the same one, with its old tensors.

    Raises:
        TypeError: For an iterator that cannot be copied.

    Example:
        >>> import torch
        >>> box = types.SimpleNamespace(x=torch.zeros(2))
        >>> replaced([box, 1], torch.ones_like)[0].x, box.x
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    changed: dict[int, Any] = {id(tensor): change(tensor) for tensor in tensors_in(value)}

    def leaf(old: Any) -> Any:
        if isinstance(old, Tensor):
            return changed[id(old)]
        if isinstance(old, ATOMS):
            return old
        try:
            return copy.deepcopy(old, changed)  # takes what it finds in its memo instead of copying
        except Exception as error:  # an object may refuse to be copied, as locks do
            if isinstance(old, Iterator):
                raise TypeError("an iterator can be read only once") from error
            return old

    return tree_map(leaf, value)
