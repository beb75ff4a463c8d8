"""Candidate sites: groups of units that a weight computes and a weight reads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fpe_lightning.sites.site import Attribute, Axis, Producer, Site
from fpe_lightning.sites.tracing.facts import Role, Span
from fpe_lightning.sites.tracing.units import Units, distinct


@dataclass(frozen=True)
class Refusal:
    """A width that cannot be widened.

    Attributes:
        name: Qualified name of the producing module.
        reason: Why, in one sentence.

    Example:
        >>> print(Refusal("head", "it reaches an output of the model"))
        head: it reaches an output of the model
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Candidate:
    """A site whose order of widened entries is not known yet.

    Attributes:
        site: The site, with ``run=1`` everywhere.
        group: Its group of units.
        order: Indices into ``axes``, in the order in which the forward uses them.
    """

    site: Site
    group: int
    order: tuple[int, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Producers, values and consumers of the site."""
        return self.site.axes()

    def with_runs(self, runs: list[int]) -> Candidate:
        """The same candidate with the given run for each of its axes."""
        run = iter(runs)
        return replace(self, site=self.site.map_axes(lambda axis: replace(axis, run=next(run))))

    def split(self) -> Candidate:
        """The same candidate with the stretches of values and consumers cut wherever their units start again.

        The columns that read a flattened image behind a pooled one need different runs.
        """
        site, axes = self.site, self.axes
        order: list[int] = []
        pieces = [[axis] if isinstance(axis, Producer) else _sweeps(axis) for axis in axes]
        firsts = np.cumsum([0, *(len(piece) for piece in pieces)])
        for index in self.order:
            order.extend(range(int(firsts[index]), int(firsts[index + 1])))
        values = len(site.producers) + len(site.values)
        site = replace(
            site,
            values=tuple(axis for piece in pieces[len(site.producers) : values] for axis in piece),
            consumers=tuple(axis for piece in pieces[values:] for axis in piece),
        )
        return replace(self, site=site, order=tuple(order))

    def with_attributes(self, attributes: tuple[Attribute, ...]) -> Candidate:
        """The same candidate with other attributes."""
        return replace(self, site=replace(self.site, attributes=attributes))


def _sweeps(axis: Axis) -> list[Axis]:
    """Cut a stretch wherever its first unit comes again."""
    assert axis.units is not None
    units = axis.units.numpy()
    starts = np.flatnonzero((units == units[0]) & (np.roll(units, 1) != units[0]))
    bounds = sorted({0, *map(int, starts), len(units)})
    return [
        replace(axis, start=axis.start + a, length=b - a, units=axis.units[a:b]) for a, b in itertools.pairwise(bounds)
    ]


def module_of(parameter: str) -> str:
    """The name that stands for a producer: its module's for a ``weight``, else the parameter's own.

    Example:
        >>> module_of("net.0.weight"), module_of("block.w1")
        ('net.0', 'block.w1')
    """
    module, _, attribute = parameter.rpartition(".")
    return module if attribute == "weight" and module else parameter


def candidates_of(
    units: Units, state: dict[str, Tensor], shared: dict[str, str]
) -> tuple[list[Candidate], list[Refusal]]:
    """Divide groups of units into candidates and refusals.

    Args:
        units: The units of the model, from its traces.
        state: Parameters and buffers by qualified name.
        shared: Parameters that several modules hold, with the reason that refuses them.

    Returns:
        Candidates and refusals, both ordered by first use.
    """
    # The axes of each group; axes that are only contracted over belong to the group of their inputs.
    spans: dict[int, list[Span]] = {}
    for span in units.facts.spans:
        if units.role_of(span) & ~Role.INPUT:
            for group in distinct(units.groups_of(span)):
                spans.setdefault(int(group), []).append(span)
    candidates: list[tuple[int, Candidate]] = []
    refusals: list[tuple[int, Refusal]] = []
    for group, members in spans.items():
        members.sort(key=lambda span: int(units.first_use[span.numbers].min()))
        computing = [span for span in members if _role(units, span, group) & (Role.PRODUCER | Role.DEPTHWISE)]
        if not computing:
            continue
        first = int(units.first_use[computing[0].numbers].min())
        reason = _refused(units, state, shared, group, members)
        if reason is None:
            candidates.append((first, _candidate(units, state, group, members)))
        else:
            names = dict.fromkeys(module_of(span.parameter) for span in computing)
            refusals.extend((first, Refusal(name, reason)) for name in names)
    refused = [refusal for _, refusal in sorted(refusals, key=lambda pair: pair[0])] + _unread(units, state)
    return [c for _, c in sorted(candidates, key=lambda pair: pair[0])], list(dict.fromkeys(refused))


UNUSED = "the forward does not use it on the example inputs"


def _unread(units: Units, state: dict[str, Tensor]) -> list[Refusal]:
    """Weights that no operator used as they are: computed ones, and those of branches that were not taken."""
    roles: dict[str, Role] = {}
    why: dict[str, str] = {}
    for span in units.facts.spans:
        roles[span.parameter] = roles.get(span.parameter, Role(0)) | units.role_of(span)
        reason = units.reasons.get(int(units.groups_of(span)[0]))
        if reason is not None:
            why.setdefault(span.parameter, reason)
    names = [name for name, role in roles.items() if not role and isinstance(state[name], torch.nn.Parameter)]
    pruned = "a pruned or normalized weight is computed from it; call torch's `prune.remove` on its module first"
    return [
        Refusal(module_of(name), why.get(name, pruned if name.endswith("_orig") else UNUSED))
        for name in names
        if state[name].dim() > 1
    ]


def _role(units: Units, span: Span, group: int) -> Role:
    """The roles that entries of a group have on one parameter axis."""
    roles = units.roles[span.numbers][units.groups_of(span) == group]
    return Role(int(np.bitwise_or.reduce(roles)))


def _refused(
    units: Units, state: dict[str, Tensor], shared: dict[str, str], group: int, members: list[Span]
) -> str | None:
    """Why a group is no candidate, or None."""
    for span in members:
        if span.parameter in shared:
            return shared[span.parameter]
    if group in units.reasons:
        return units.reasons[group]
    producers = [span for span in members if _role(units, span, group) & Role.PRODUCER]
    consumers = [span for span in members if _role(units, span, group) & Role.CONSUMER]
    if not producers:
        return "depthwise only: no weight computes the width"
    if not consumers:
        return "no weight reads it"
    for span in (*producers, *consumers):
        if not isinstance(state[span.parameter], torch.nn.Parameter):
            return f"{span.parameter} is a buffer, not a parameter"
    return None


def _candidate(units: Units, state: dict[str, Tensor], group: int, members: list[Span]) -> Candidate:
    """Lay out the axes of a group."""
    # 1. Number the units as they first appear, the rows of the leading producer first.
    leading = next(span for span in members if _role(units, span, group) & Role.PRODUCER)
    seen = np.concatenate([units.of(span)[units.groups_of(span) == group] for span in (leading, *members)])
    known, first = np.unique(seen, return_index=True)
    number = np.empty(len(known), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(known))
    # 2. Cut each parameter axis into the stretches that belong to the group, and say what they do.
    found: list[tuple[int, int, Axis]] = []
    for position, span in enumerate(members):
        role = _role(units, span, group)
        kind = 0 if role & Role.PRODUCER else 2 if role & Role.CONSUMER else 1
        inside = units.groups_of(span) == group
        for start, length in _stretches(inside):
            numbers = torch.from_numpy(number[np.searchsorted(known, units.of(span)[start : start + length])])
            axis = Axis(span.parameter, span.dim, start, length, units=numbers)
            if kind == 0:
                axis = Producer(
                    span.parameter, span.dim, start, length, units=numbers, input_dim=_input_dim(units, state, span)
                )
            found.append((kind, position, axis))
    # 3. Producers, values, consumers; `order` keeps the order of the forward.
    found.sort(key=lambda entry: entry[0])
    kinds = [kind for kind, _, _ in found]
    producers: list[Producer] = [axis for _, _, axis in found if isinstance(axis, Producer)]
    names = {producer.parameter for producer in producers}
    added, gated = bool(units.added[group]), bool(units.gated[group])
    several = len(names) > 1
    site = Site(
        name=module_of(leading.parameter),
        width=len(known),
        fan_in=state[leading.parameter].shape[producers[0].input_dim],
        producers=tuple(producers),
        values=tuple(axis for kind, _, axis in found if kind == 1),
        consumers=tuple(axis for kind, _, axis in found if kind == 2),
        kind="stream" if several and (added or not gated) else "gated" if gated else "hidden",
        linear=not units.bent[group],
    )
    order = sorted(range(len(kinds)), key=lambda index: (found[index][1], index))
    return Candidate(site, group, tuple(order))


def _input_dim(units: Units, state: dict[str, Tensor], span: Span) -> int:
    """The axis of a producer that is contracted over."""
    contracted = [
        other.dim
        for other in units.spans_of[span.parameter]
        if other.dim != span.dim and units.role_of(other) & Role.INPUT
    ]
    return contracted[0] if contracted else (1 if span.dim == 0 else 0)


def _stretches(inside: np.ndarray) -> list[tuple[int, int]]:
    """(start, length) of each maximal run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return [(int(start), int(end - start)) for start, end in edges.reshape(-1, 2)]
