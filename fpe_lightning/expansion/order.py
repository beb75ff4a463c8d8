"""The order of children: in block order, those of one number are consecutive hidden units."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fpe_lightning.sites.site import Axis, Site

ORDERLESS = frozenset(
    {"in_features", "out_features", "nf", "in_channels", "out_channels", "num_features", "normalized_shape", "groups"}
)
"""Integers of layers that treat their units alike in any order; those of a group norm are not among them."""


def block_order(model: nn.Module, site: Site) -> Site:
    """The same site, with its children in block order.

    Without it, the children of one neuron are adjacent. In block order the first children of all neurons come first,
    then the second ones, and so on. The children of one number that descend from one group of neurons are then
    consecutive rows. Where outgoing weights are partitioned, each stretch of outputs reads consecutive columns, and
    blocks of one size are adjacent.

    Args:
        model: The model that the site belongs to.
        site: A site.

    Returns:
        The site with longer runs; the site itself where its units have an order that must not change.

    Example:
        >>> site = Site("0", 4, 8, (), (), (Axis("2.weight", 1, 0, 4),))
        >>> block_order(nn.Identity(), site).consumers[0].run
        4
    """
    # Grouped convolutions and group norms compute with neighbours: another order is another function.
    modules = [model.get_submodule(attribute.module) for attribute in site.attributes]
    grouped_conv = any(1 < getattr(module, "groups", 1) < getattr(module, "in_channels", 1) for module in modules)
    known = all(attribute.name in ORDERLESS for attribute in site.attributes)
    if grouped_conv or not known or not all(_in_order(axis, site.width) for axis in site.axes()):
        return site

    return site.map_axes(lambda axis: replace(axis, run=axis.run * site.width))


def _in_order(axis: Axis, width: int) -> bool:
    """Whether the entries of an axis are the runs of all units in their order, once or several times over."""
    if axis.length % (width * axis.run):
        return False
    if axis.units is None:
        return axis.length == width * axis.run
    units = axis.units.view(-1, width, axis.run)
    return bool((units == torch.arange(width, device=units.device).view(1, -1, 1)).all())
