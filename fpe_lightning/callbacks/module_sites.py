"""The sites of a LightningModule, found through the networks that its steps call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from fpe_lightning.callbacks.recorder import Call, rebuild
from fpe_lightning.expansion.find import find_sites
from fpe_lightning.expansion.sites import Attribute, Axis, Producer, Site
from fpe_lightning.expansion.tracing.forward import Inputs


def sites_of_calls(pl_module: pl.LightningModule, calls: Sequence[Call]) -> list[Site]:
    """The sites of every network that was called, under the names that the LightningModule knows.

    A network may be called as a whole here and in parts there. What one call shows to reach an output stays as it is,
    even if another call would allow a split.

    Args:
        pl_module: The module.
        calls: From a :class:`~fpe_lightning.callbacks.recorder.CallRecorder`.

    Raises:
        ValueError: If a network does not run on the inputs that were noted.
    """
    sites: dict[str, Site] = {}
    refused: set[str] = set()
    for call in calls:
        network = pl_module.get_submodule(call["module"])
        args, kwargs = rebuild(call["args"], pl_module.device), rebuild(call["kwargs"], pl_module.device)
        prefix = f"{call['module']}." if call["module"] else ""
        found, refusals = find_sites(network, Inputs(args, kwargs), explain=True)
        for site in found:
            sites.setdefault((prefix + site.name).rstrip("."), prefixed(site, prefix))
        refused.update((prefix + refusal.name).rstrip(".") for refusal in refusals)
    # A module called by itself is refused by its parameter's name, as its own name is empty there.
    return [
        site
        for name, site in sites.items()
        if refused.isdisjoint([name, *(producer.parameter for producer in site.producers)])
    ]


def prefixed(site: Site, prefix: str) -> Site:
    """The same site seen from a module further up.

    Example:
        >>> prefixed(Site("0", 8, 4, (), (), (Axis("2.weight", 1, 0, 8),)), "net.").consumers[0].parameter
        'net.2.weight'
    """

    def move(axis: Any) -> Any:
        return replace(axis, parameter=prefix + axis.parameter)

    def move_attribute(attribute: Attribute) -> Attribute:
        return replace(attribute, module=(prefix + attribute.module).rstrip("."))

    producers: tuple[Producer, ...] = tuple(map(move, site.producers))
    values: tuple[Axis, ...] = tuple(map(move, site.values))
    consumers: tuple[Axis, ...] = tuple(map(move, site.consumers))
    attributes = tuple(map(move_attribute, site.attributes))
    name = (prefix + site.name).rstrip(".")
    return replace(site, name=name, producers=producers, values=values, consumers=consumers, attributes=attributes)
