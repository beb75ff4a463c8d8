"""Sites in plain types, as a checkpoint can hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.found import Found
from fpe_lightning.sites.site import Attribute, Axis, Producer, Site
from fpe_lightning.sites.tracing.sandbox import modules_by_name, state_of
from fpe_lightning.sparse.convert import stored_masked

Plain = dict[str, Any]


def to_plain(found: Found, model: nn.Module) -> Plain:
    """Describe sites and refusals in dicts, lists, strings and numbers.

    Args:
        found: The sites and refusals of a model.
        model: The model; the shapes of its parameters are kept too.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> site = Site("0", 8, 4, (Producer("0.weight", 0, 0, 8),), (), (Axis("1.weight", 1, 0, 8),))
        >>> from_plain(to_plain(Found((site,)), net), net).sites == (site,)
        True
        >>> from_plain(to_plain(Found((site,)), net), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))) is None
        True
    """
    shapes = _shapes(model)
    # Shapes of what the sites touch tell later whether the model is still of these widths.
    names = {name for site in found.sites for name in site.parameters()}
    return {
        "sites": [_site(site) for site in found.sites],
        "refusals": [[refusal.name, refusal.reason] for refusal in found.refusals],
        "shapes": {name: list(shapes[name]) for name in sorted(names)},
    }


def _site(site: Site) -> Plain:
    plain = {each.name: getattr(site, each.name) for each in fields(site)}
    for kind in ("producers", "values", "consumers", "attributes"):
        # Not `asdict`, which copies tensors; `weights_only` loads lists.
        plain[kind] = [{each.name: getattr(part, each.name) for each in fields(part)} for part in plain[kind]]
        for part in plain[kind]:
            if isinstance(part.get("units"), torch.Tensor):
                part["units"] = part["units"].tolist()
    plain["input_shapes"] = {owner: list(shape) for owner, shape in site.input_shapes.items()}
    return plain


def from_plain(plain: Any, model: nn.Module) -> Found | None:
    """The inverse of :func:`to_plain`.

    Args:
        plain: From a checkpoint; nothing in it is believed before it is checked.
        model: The model of the sites.

    Returns:
        Sites and refusals; None if they are of a model of other shapes, or are no sites at all.
    """
    try:
        # Whatever is missing or of another type ends in None: the sites are found again.
        sites = tuple(_read(each) for each in plain["sites"])
        refusals = tuple(Refusal(str(name), str(reason)) for name, reason in plain["refusals"])
        shapes, modules = _shapes(model), modules_by_name(model)
        same = all(list(shapes[name]) == plain["shapes"][name] for site in sites for name in site.parameters())
        return Found(sites, refusals) if same and all(_fits(site, shapes, modules) for site in sites) else None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None


def _read(plain: Mapping[str, Any]) -> Site:
    def parts(kind: str, build: Any) -> tuple[Any, ...]:
        found = []
        for each in plain[kind]:
            units = each.get("units")
            found.append(build(**each) if units is None else build(**{**each, "units": torch.tensor(units)}))
        return tuple(found)

    site = Site(**{each.name: plain[each.name] for each in fields(Site)})
    return replace(
        site,
        producers=parts("producers", Producer),
        values=parts("values", Axis),
        consumers=parts("consumers", Axis),
        attributes=parts("attributes", Attribute),
        input_shapes={str(owner): tuple(map(int, shape)) for owner, shape in plain["input_shapes"].items()},
    )


def _fits(site: Site, shapes: Mapping[str, torch.Size], modules: Mapping[str, nn.Module]) -> bool:
    """Whether all numbers of a site lie within the model."""
    for axis in site.axes():
        # A stretch within its axis, made of whole runs, with units of the site.
        size = shapes[axis.parameter][axis.dim]
        inside = axis.start >= 0 and 0 < axis.run <= axis.length <= size - axis.start and axis.length % axis.run == 0
        units = axis.units
        known = units is None or (
            units.shape == (axis.length,)
            and units.dtype == torch.int64
            and int(units.min()) >= 0
            and int(units.max()) < site.width
        )
        if not (inside and known):
            return False
    for each in site.attributes:
        value = getattr(modules[each.module], each.name)
        if type(value if each.index is None else value[each.index]) is not int or type(each.growth) is not int:
            return False
    whole = (type(number) is int for number in (site.width, site.fan_in))
    return bool(site.producers and site.consumers) and all(whole) and type(site.linear) is bool


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shapes of all parameters and buffers, of packed weights when unpacked."""
    with stored_masked(model):
        return {name: tensor.shape for name, tensor in state_of(model).items()}


__all__: Sequence[str] = ("Plain", "from_plain", "to_plain")
