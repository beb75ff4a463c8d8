"""Which integers of modules have to grow with a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe_lightning.expansion.sites import Attribute, Axis, Site
from fpe_lightning.expansion.tracing.candidates import Candidate, axes_of
from fpe_lightning.expansion.tracing.ledger import Role
from fpe_lightning.expansion.tracing.resolve import Units

_CONVS = (nn.modules.conv._ConvNd,)
_NORM_SIZES = ("num_features", "num_channels", "num_parameters")
_OWN = frozenset(vars(nn.Module())) | {"training"}


def layer_attributes(
    candidate: Candidate, units: Units, modules: dict[str, nn.Module], owners: dict[str, list[tuple[str, str]]]
) -> tuple[Attribute, ...]:
    """The attributes that torch's own layers (and subclasses of them) keep of their widths.

    Args:
        candidate: The site.
        units: What the traces say.
        modules: Modules by name.
        owners: Which modules hold each parameter.

    Returns:
        Attributes, without repetition.
    """
    growth: dict[tuple[str, str, int | None], int] = {}
    for axis in axes_of(candidate.site):
        span = units.ledger.span(axis.parameter, axis.dim)
        depthwise = bool(units.role_of(span) & Role.DEPTHWISE)
        for module_name, attribute in owners[axis.parameter]:
            module = modules[module_name]
            for name, amount in _weight_sizes(module, attribute, axis, depthwise):
                key = (module_name, name, None)
                growth[key] = growth.get(key, 0) + amount
    for use in units.ledger.uses:
        module = modules[use.module]
        if use.axis is None or not _is_norm(module):
            continue
        count = _count(use.label, candidate.group, units)
        if count:
            for name, position in _norm_sizes(module, use.size, use.axis):
                growth[use.module, name, position] = count
    return tuple(Attribute(module, name, amount, index) for (module, name, index), amount in growth.items())


def _weight_sizes(module: nn.Module, parameter: str, axis: Axis, depthwise: bool) -> Iterator[tuple[str, int]]:
    """Which attributes of a linear or convolutional layer count the entries of an axis of its weight."""
    if parameter != "weight":
        return
    if isinstance(module, nn.Linear):
        yield ("out_features", "in_features")[axis.dim], axis.length
    elif isinstance(module, _CONVS) and axis.dim < 2:
        rows = axis.dim == (1 if module.transposed else 0)
        if depthwise:
            inputs = axis.length * module.in_channels // module.out_channels
            yield from (("out_channels", axis.length), ("in_channels", inputs), ("groups", inputs))
        elif rows:
            yield "out_channels", axis.length * (module.groups if module.transposed else 1)
        else:
            yield "in_channels", axis.length * (1 if module.transposed else module.groups)


def _is_norm(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in (*_NORM_SIZES, "normalized_shape")) and not isinstance(
        module, (nn.Linear, *_CONVS)
    )


def _norm_sizes(module: nn.Module, size: int, axis: int) -> Iterator[tuple[str, int | None]]:
    """Which attributes of a normalisation layer equal a size that it met on an axis."""
    for name in _NORM_SIZES:
        if getattr(module, name, None) == size:
            yield name, None
    shape = getattr(module, "normalized_shape", ())
    shape = (shape,) if isinstance(shape, int) else shape
    if -axis <= len(shape) and shape[axis] == size:
        yield "normalized_shape", len(shape) + axis if not isinstance(module.normalized_shape, int) else None


def _count(label: Tensor, group: int, units: Units) -> int:
    """How many entries along a one-axis label belong to a group."""
    return int((units.group[units.unit[label.numpy()]] == group).sum()) if label.numel() == max(label.shape) else 0


def patch_attributes(candidate: Candidate, units: Units, modules: dict[str, nn.Module]) -> tuple[Attribute, ...]:
    """Integers of other modules that equal a size which the module's own forward met on the site's axes.

    Sizes that are written into a forward as ``self.hidden`` are plain integers to a tracer. These are guesses; a trial
    decides which of them are needed.

    Args:
        candidate: The site.
        units: What the traces say.
        modules: Modules by name.

    Returns:
        Attributes that may have to grow.
    """
    known = {(a.module, a.name) for a in candidate.site.attributes}
    sizes: dict[str, dict[int, int]] = {}
    for use in units.ledger.uses:
        inside = units.group[units.unit[use.label.numpy()]] == candidate.group
        if inside.any() and not type(modules[use.module]).__module__.startswith("torch.nn.modules"):
            share = np.count_nonzero(inside) / inside.size
            sizes.setdefault(use.module, {})[use.size] = round(use.size * share)
    found = []
    for module, met in sizes.items():
        for name, value in vars(modules[module]).items():
            if name in _OWN or (module, name) in known:
                continue
            entries = list(enumerate(value)) if isinstance(value, (tuple, list, torch.Size)) else [(None, value)]
            for index, entry in entries:
                if type(entry) is int and entry > 1 and met.get(entry):
                    found.append(Attribute(module, name, met[entry], index))
    return tuple(found)


def changed_values(sites: Sequence[tuple[Site, int]], modules: Mapping[str, nn.Module]) -> dict[tuple[str, str], Any]:
    """The new values of the attributes that grow with some sites.

    Args:
        sites: Sites, each with its number of copies (alpha).
        modules: Modules by name.

    Returns:
        New values by (module name, attribute name).
    """
    values: dict[tuple[str, str], Any] = {}
    for site, alpha in sites:
        for attribute in site.attributes:
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
