"""Which integers of modules have to grow with a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from fpe_lightning.sites.candidates import Candidate
from fpe_lightning.sites.site import Attribute, Axis, Site
from fpe_lightning.sites.tracing.facts import Role
from fpe_lightning.sites.tracing.units import Units

NORM_SIZES = ("normalized_shape", "num_features", "num_channels", "num_parameters")
Key = tuple[str, str, int | None]  # module, attribute, index
Owners = list[tuple[str, str]]
_OWN = frozenset(vars(nn.Module())) | {"training"}


def layer_attributes(
    candidates: Sequence[Candidate], units: Units, modules: Mapping[str, nn.Module], owners: Mapping[str, Owners]
) -> list[Candidate]:
    """Add the attributes that torch's own layers (and subclasses of them) keep of their widths.

    Args:
        candidates: The candidates.
        units: The units that the traces found.
        modules: Modules by name.
        owners: Which (module name, attribute) pairs hold each parameter.

    Returns:
        The candidates with attributes.
    """
    norms = _norm_growth(units, modules)
    return [
        candidate.with_attributes(_attributes(candidate, units, modules, owners, norms.get(candidate.group, {})))
        for candidate in candidates
    ]


def _attributes(
    candidate: Candidate,
    units: Units,
    modules: Mapping[str, nn.Module],
    owners: Mapping[str, Owners],
    norms: Mapping[Key, int],
) -> tuple[Attribute, ...]:
    growth: dict[Key, int] = {}
    for axis in candidate.site.axes():
        span = units.facts.span(axis.parameter, axis.dim)
        depthwise = bool(units.role_of(span) & Role.DEPTHWISE)
        for module_name, attribute in owners[axis.parameter]:
            for name, amount in _weight_sizes(modules[module_name], attribute, axis, depthwise):
                key = (module_name, name, None)
                growth[key] = growth.get(key, 0) + amount
    growth.update(norms)
    return tuple(Attribute(module, name, amount, index) for (module, name, index), amount in growth.items())


def _weight_sizes(module: nn.Module, parameter: str, axis: Axis, depthwise: bool) -> Iterator[tuple[str, int]]:
    """Which attributes of a linear or convolutional layer count the entries of an axis of its weight."""
    if parameter != "weight":
        return
    if isinstance(module, nn.Linear):
        yield ("out_features", "in_features")[axis.dim], axis.length
    elif isinstance(module, nn.modules.conv._ConvNd) and axis.dim < 2:
        rows = axis.dim == (1 if module.transposed else 0)
        if depthwise:
            inputs = axis.length * module.in_channels // module.out_channels
            yield from (("out_channels", axis.length), ("in_channels", inputs), ("groups", inputs))
        elif rows:
            yield "out_channels", axis.length * (module.groups if module.transposed else 1)
        else:
            yield "in_channels", axis.length * (1 if module.transposed else module.groups)


def _norm_growth(units: Units, modules: Mapping[str, nn.Module]) -> dict[int, dict[Key, int]]:
    """For each group the sizes of normalisation layers (with or without parameters) that count its entries."""
    norms = {name for name, module in modules.items() if any(hasattr(module, size) for size in NORM_SIZES)}
    found: dict[int, dict[Key, int]] = {}
    for use in units.facts.uses:
        if use.module not in norms or use.axis is None or use.label.numel() != max(use.label.shape):
            continue
        groups, counts = np.unique(units.group[units.unit[use.label.numpy()]], return_counts=True)
        for name, index in _norm_sizes(modules[use.module], use.size, use.axis):
            for group, count in zip(groups, counts, strict=True):
                found.setdefault(int(group), {})[use.module, name, index] = int(count)
    return found


def _norm_sizes(module: nn.Module, size: int, axis: int) -> Iterator[tuple[str, int | None]]:
    """Which attributes of a normalisation layer equal a size that it met on an axis (counted from the end)."""
    for name in NORM_SIZES[1:]:
        if getattr(module, name, None) == size:
            yield name, None
    shape = getattr(module, NORM_SIZES[0], ())
    if isinstance(shape, int):
        if shape == size:
            yield NORM_SIZES[0], None
    elif -axis <= len(shape) and shape[axis] == size:
        yield NORM_SIZES[0], len(shape) + axis


def patch_attributes(
    candidate: Candidate, units: Units, modules: Mapping[str, nn.Module], *, written: bool
) -> tuple[Attribute, ...]:
    """Integers of other modules that equal a size which the module's own forward met on the site's axes.

    Sizes that are written into a forward as ``self.hidden`` are plain integers to a tracer. These are guesses; a trial
    decides which of them are needed.

    Args:
        candidate: The site.
        units: The units that the traces found.
        modules: Modules by name.
        written: Whether only sizes count that were an argument of an operator, as in ``x.view(-1, self.hidden)``.

    Returns:
        Attributes that may have to grow.
    """
    known = {(a.module, a.name, a.index) for a in candidate.site.attributes}
    sizes: dict[str, dict[int, int]] = {}
    for use, share in units.shares_of(candidate.group):
        # The share of a size that belongs to the site grows with it, such as half of a fused gate.
        if (use.written or not written) and not isinstance(modules[use.module], (nn.Linear, nn.modules.conv._ConvNd)):
            sizes.setdefault(use.module, {})[use.size] = round(use.size * share)
    found = []
    for module, met in sizes.items():
        for name, value in vars(modules[module]).items():
            entries = list(enumerate(value)) if isinstance(value, (tuple, list)) else [(None, value)]
            for index, entry in entries:
                fits = type(entry) is int and entry > 1 and met.get(entry)
                if fits and name not in _OWN and (module, name, index) not in known:
                    found.append(Attribute(module, name, met[entry], index))
    return tuple(found)


def changed_values(sites: Sequence[tuple[Site, int]], modules: Mapping[str, nn.Module]) -> dict[tuple[str, str], Any]:
    """The new values of the attributes that grow with some sites.

    Args:
        sites: Sites, each with its number of copies (alpha).
        modules: Modules by name; attributes of others are left out.

    Returns:
        New values by (module name, attribute name).
    """
    values: dict[tuple[str, str], Any] = {}
    for site, alpha in sites:
        for attribute in (each for each in site.attributes if each.module in modules):
            # Several sites may grow one integer, or entries of one tuple.
            key = (attribute.module, attribute.name)
            value = values.get(key, getattr(modules[attribute.module], attribute.name))
            grown = (alpha - 1) * attribute.growth
            if attribute.index is None:
                values[key] = value + grown
            else:
                entries = list(value)
                entries[attribute.index] += grown
                values[key] = type(value)(entries)
    return values
