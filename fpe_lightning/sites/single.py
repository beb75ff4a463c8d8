"""Widths of a single unit.

Labels tell axes apart by the entries that they distinguish, so that an axis of one entry carries none. A pair of
layers with one unit between them is therefore a guess, which a trace at two units confirms or refuses.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fpe_lightning.sites.candidates import candidates_of
from fpe_lightning.sites.site import Attribute, Axis, Producer, Site
from fpe_lightning.sites.tracing.sandbox import modules_by_name, state_of
from fpe_lightning.sites.tracing.units import resolve
from fpe_lightning.sites.trial import Trials

MOST_PAIRS = 64
"""Models with more pairs of such layers are not searched."""


def single_unit_sites(trials: Trials, shared: Mapping[str, str]) -> list[Site]:
    """Find pairs of linear or convolutional layers with a single unit between them.

    Args:
        trials: Of the model.
        shared: Parameters that several modules hold; they are not looked at.

    Returns:
        Sites of width 1.
    """
    modules = {
        name: module
        for name, module in modules_by_name(trials.model).items()
        if f"{name}.weight".strip(".") not in shared and _is_plain(module)
    }
    computing = [name for name, module in modules.items() if module.get_parameter("weight").shape[0] == 1]
    reading = [name for name, module in modules.items() if module.get_parameter("weight").shape[1] == 1]
    pairs = [(p, c) for p, c in itertools.product(computing, reading) if p != c]
    if len(pairs) > MOST_PAIRS:
        return []
    guesses = (_guess(p, modules[p], c, modules[c]) for p, c in pairs)
    return [site for guess in guesses if (site := _confirmed(trials, guess, shared)) is not None]


def _is_plain(module: nn.Module) -> bool:
    if module._parameters.get("weight") is None:  # computed from other parameters, as by torch's prune
        return False
    if isinstance(module, _ConvNd):
        return module.groups == 1 and not isinstance(module, _ConvTransposeNd)
    return isinstance(module, nn.Linear)


def _guess(producing: str, producer: nn.Module, reading: str, consumer: nn.Module) -> Site:
    """The site of two layers, if the only unit of the one is all that the other reads."""
    one = torch.zeros(1, dtype=torch.int64)
    sizes = {nn.Linear: ("out_features", "in_features"), _ConvNd: ("out_channels", "in_channels")}
    (out, _), (_, into) = (
        next(names for kind, names in sizes.items() if isinstance(module, kind)) for module in (producer, consumer)
    )
    bias = () if producer.bias is None else (Axis(f"{producing}.bias", 0, 0, 1, units=one),)
    return Site(
        name=producing,
        width=1,
        fan_in=producer.get_parameter("weight").shape[1],
        producers=(Producer(f"{producing}.weight", 0, 0, 1, units=one),),
        values=bias,
        consumers=(Axis(f"{reading}.weight", 1, 0, 1, units=one),),
        attributes=(Attribute(producing, out, 1), Attribute(reading, into, 1)),
    )


def _confirmed(trials: Trials, guess: Site, shared: Mapping[str, str]) -> Site | None:
    """A guess, if the model runs with two units and they meet in the axes of the guess and nowhere else."""
    facts = trials.facts_at([(guess, 2)])
    if isinstance(facts, Exception):
        return None
    candidates, _ = candidates_of(resolve(facts), state_of(trials.model), dict(shared))
    wide = guess.map_axes(lambda axis: replace(axis, length=2))
    for candidate in candidates:
        found = candidate.site
        if (found.producers, found.values, found.consumers) == (wide.producers, wide.values, wide.consumers):
            return replace(guess, kind=found.kind, linear=found.linear)
    return None


def in_order(sites: Sequence[Site], calls: Sequence[str]) -> list[Site]:
    """Sort sites by the first call of the module that computes them.

    Example:
        >>> first, second = Site("a", 1, 4, (), (), ()), Site("b", 8, 4, (), (), ())
        >>> [site.name for site in in_order([second, first], ["", "a", "b"])]
        ['a', 'b']
    """
    place = {name: position for position, name in enumerate(calls)}
    return sorted(sites, key=lambda site: place.get(site.name, len(place)))
