"""Parts of a model by qualified name, also where a copy stands in for the part that it copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fpe_lightning.arguments import check_strings
from fpe_lightning.registry import did_you_mean


class Mirror(nn.Module):
    """A place on the way to a copy that stands in for its student; it has no tensors of its own."""


def mirror(name: str, copy: nn.Module) -> nn.Module:
    """A module in which a copy has the qualified name of the part that it copies; an empty one means the whole model.

    Example:
        >>> [name for name, _ in names_of(mirror("net.body", nn.Linear(2, 1)))]
        ['', 'net', 'net.body']
    """
    root = copy
    for part in reversed(name.split(".") if name else []):
        inner, root = root, Mirror()
        root.add_module(part, inner)
    return root


def part_of(model: nn.Module, name: str) -> nn.Module | None:
    """A part of a model by its qualified name; None where a mirror has no such part.

    Example:
        >>> part_of(mirror("net", nn.Linear(2, 1)), "head") is None
        True
    """
    if not isinstance(model, Mirror):
        return model.get_submodule(name)
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    return None if isinstance(found, Mirror) else found


def names_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model that have parameters, by name.

    Example:
        >>> [name for name, _ in names_of(nn.Sequential(nn.Linear(2, 1), nn.ReLU()))]
        ['', '0']
    """
    return ((name, part) for name, part in model.named_modules() if next(part.parameters(), None) is not None)


def resolve_averages(model: nn.Module, averages: Iterable[Any]) -> tuple[list[nn.Module], list[Any]]:
    """Averages as modules, where names or globs stand for parts of the model, and all that are neither.

    Raises:
        ValueError: If a name matches no part of the model.

    Example:
        >>> resolve_averages(nn.Sequential(nn.Linear(2, 1)), ["0"])
        ([Linear(in_features=2, out_features=1, bias=True)], [])
    """
    if not isinstance(averages, (str, nn.Module, Iterable)):
        check_strings("averages", averages, "modules, or names and globs of parts of the model")
    names = {name: module for name, module in model.named_modules() if name}
    found: list[nn.Module] = []
    others: list[Any] = []
    for each in [averages] if isinstance(averages, (str, nn.Module)) else averages:
        if not isinstance(each, str):
            (found if isinstance(each, nn.Module) else others).append(each)
            continue
        matching = [name for name in names if fnmatchcase(name, each)]
        # A glob matches the parts of a part too.
        outermost = [name for name in matching if not any(name != o and is_inside(name, o) for o in matching)]
        if not outermost:
            raise ValueError(f"`averages` names {each!r}, and the model has no such part.{did_you_mean(each, names)}")
        found.extend(names[name] for name in outermost)
    return list(dict.fromkeys(found)), others


def joined(module: str, name: str) -> str:
    """The qualified name of something in a part; either name may be empty."""
    return f"{module}.{name}".strip(".")


def is_inside(name: str, other: str) -> bool:
    """Whether a part is another one, or inside of it."""
    return not other or name == other or name.startswith(f"{other}.")
