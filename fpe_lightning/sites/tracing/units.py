"""From facts to candidate widths: entries become units, units that must be widened together become groups."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from fpe_lightning.sites.tracing.facts import Facts, Role, Span, Use
from fpe_lightning.sites.tracing.labels import UNLABELLED

COMPUTES = Role.PRODUCER | Role.DEPTHWISE


def components(size: int, pairs: np.ndarray) -> np.ndarray:
    """Find connected components by union-find, all edges at a time.

    Args:
        size: Number of nodes.
        pairs: ``(2, n)`` int64 edges.

    Returns:
        ``(size,)`` int64, the component of each node; components are numbered by their smallest node.

    Example:
        >>> components(5, np.array([[3, 1], [1, 4]])).tolist()
        [0, 1, 2, 1, 1]
    """
    root = np.arange(size)
    first, second = pairs
    while True:
        first, second = root[first], root[second]
        open_ = first != second
        if not open_.any():
            # The root of a component is its smallest node.
            return (np.cumsum(root == np.arange(size)) - 1)[root]
        first, second = first[open_], second[open_]
        # Larger roots point to smaller ones, so that there are no circles; edges that lost are tried again.
        root[np.maximum(first, second)] = np.minimum(first, second)
        while not np.array_equal(root, shorter := root[root]):
            root = shorter


def distinct(values: np.ndarray) -> np.ndarray:
    """The different values of a list of small numbers, in order.

    Example:
        >>> distinct(np.array([4, 2, 4])).tolist()
        [2, 4]
    """
    if values.size < 2 or (values == values[0]).all():
        return values[:1]
    return np.flatnonzero(np.bincount(values))


def _joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros((2, 0), dtype=np.int64), *arrays], axis=1)


@dataclass
class Units:
    """The units of a model and their groups.

    Attributes:
        facts: The facts of the traces.
        unit: ``(numbers,)`` the unit of each numbered entry.
        roles: ``(numbers,)`` the roles of each entry, as the bits of ``Role``.
        first_use: ``(numbers,)`` position in the forward at which each entry got its first role.
        reasons: For each refused group why.
        group: ``(units,)`` units of one group can only be widened together.
        added: ``(groups,)`` whether producers of the group meet in a sum.
        gated: ``(groups,)`` whether units of the group meet in a product.
        bent: ``(groups,)`` whether units of the group enter an operator that is not linear in them.
    """

    facts: Facts
    unit: np.ndarray
    roles: np.ndarray
    first_use: np.ndarray
    reasons: dict[int, str]
    group: np.ndarray
    added: np.ndarray
    gated: np.ndarray
    bent: np.ndarray

    def of(self, span: Span) -> np.ndarray:
        """The units of the entries of one parameter axis."""
        return self.unit[span.numbers]

    def groups_of(self, span: Span) -> np.ndarray:
        """The groups of the entries of one parameter axis."""
        return self.group[self.of(span)]

    def role_of(self, span: Span) -> Role:
        """All roles that entries of one parameter axis have."""
        return Role(int(np.bitwise_or.reduce(self.roles[span.numbers])))

    def groupings_of(self, groups: Collection[int]) -> list[np.ndarray]:
        """Those of the facts' groupings that hold units of some groups, in their order."""
        return [self.facts.groupings[place] for place in sorted({p for g in groups for p in self._cuts.get(g, ())})]

    @functools.cached_property
    def _cuts(self) -> dict[int, list[int]]:
        """The positions of the groupings that each group meets in."""
        cuts: dict[int, list[int]] = {}
        for place, numbers in enumerate(self.facts.groupings):
            for group in distinct(self.group[self.unit[numbers.reshape(-1)]]):
                cuts.setdefault(int(group), []).append(place)
        return cuts

    def shares_of(self, group: int) -> list[tuple[Use, float]]:
        """The sizes that modules met on axes with units of a group, with the share of the axis that these are."""
        return self._shares.get(group, [])

    @functools.cached_property
    def _shares(self) -> dict[int, list[tuple[Use, float]]]:
        shares: dict[int, list[tuple[Use, float]]] = {}
        for use in self.facts.uses:
            met = self.group[self.unit[use.label.numpy().reshape(-1)]]
            if (met == met[0]).all():
                shares.setdefault(int(met[0]), []).append((use, 1.0))
                continue
            for group, count in zip(*np.unique(met, return_counts=True), strict=True):
                shares.setdefault(int(group), []).append((use, float(count / met.size)))
        return shares

    @functools.cached_property
    def spans_of(self) -> dict[str, list[Span]]:
        """The numbered axes of each parameter."""
        spans: dict[str, list[Span]] = {}
        for span in self.facts.spans:
            spans.setdefault(span.parameter, []).append(span)
        return spans


def resolve(facts: Facts) -> Units:
    """Find the units and their groups.

    Args:
        facts: Everything that the traces say.

    Returns:
        Units, groups and refusals.
    """
    # 1. Entries that are tied are one unit. Ties to the unlabelled entry refuse, they do not join.
    pairs = {how: _joined(p for p, h in facts.ties if h == how) for how in ("", "sum", "product")}
    real = {how: p[:, (p != UNLABELLED).all(0)] for how, p in pairs.items()}
    unit = components(facts.size, _joined(real.values()))
    # 2. Units of one computing axis or one bundle are one group; reasons count for whole groups.
    roles, first_use = _roles(facts)
    group = _groups(facts, unit, roles)
    reasons = _reasons(facts, group[unit], roles, _joined(pairs.values()))
    # 3. Producers of a group meet in a sum (a residual stream) or in a product (a gate) if they belong together by
    #    such ties alone.
    makes = np.zeros(facts.size, dtype=bool)
    makes[(roles & Role.PRODUCER) > 0] = True
    marks = {}
    for how in ("sum", "product"):
        others = [p for h, p in real.items() if h != how]
        before = components(facts.size, _joined(others))
        computed = np.zeros(before.max() + 1, dtype=bool)
        computed[before[makes]] = True
        a, b = real[how]
        meet = (before[a] != before[b]) & computed[before[a]] & computed[before[b]]
        marks[how] = np.zeros(group.max() + 1, dtype=bool)
        marks[how][group[unit[a[meet]]]] = True
    # 4. A group is linear until one of its units enters an operator that is not.
    bent = np.zeros(group.max() + 1, dtype=bool)
    for numbers in facts.bends:
        bent[group[unit[numbers[numbers != UNLABELLED]]]] = True
    return Units(facts, unit, roles, first_use, reasons, group, marks["sum"], marks["product"], bent)


def _roles(facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    roles = np.zeros(facts.size, dtype=np.int64)
    first_use = np.full(facts.size, np.iinfo(np.int64).max)
    for position, (numbers, role) in enumerate(facts.roles):
        roles[numbers] |= int(role)
        # Reading an input is no use of the width that is looked for.
        if role != Role.INPUT:
            first_use[numbers] = np.minimum(first_use[numbers], position)
    return roles, first_use


def _reasons(facts: Facts, group: np.ndarray, roles: np.ndarray, pairs: np.ndarray) -> dict[int, str]:
    """The first reason against each refused group, given the group of each number."""
    reasons: dict[int, str] = {}

    def refuse(numbers: np.ndarray, reason: str) -> None:
        for member in distinct(group[numbers[numbers != UNLABELLED]]):
            reasons.setdefault(int(member), reason)

    for numbers, reason in facts.frozen:
        refuse(numbers, reason)
    refuse(pairs[:, (pairs == UNLABELLED).any(0)].reshape(-1), "it meets entries that no weight computes")
    for numbers, reason in facts.bundles:
        if (numbers == UNLABELLED).any():
            refuse(numbers, f"only part of the axis is computed by weights ({reason})")
    both = ((roles & Role.CONSUMER) > 0) & ((roles & (Role.PRODUCER | Role.VALUE | Role.DEPTHWISE)) > 0)
    refuse(np.flatnonzero(both), "tied weights: the same entries compute units and read units")
    return reasons


def _groups(facts: Facts, unit: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Units of one computing axis, or of one bundle, belong together."""
    edges = []
    for span in facts.spans:
        if (roles[span.numbers] & COMPUTES).any():
            members = unit[span.numbers]
            edges.append(np.stack([np.full(len(members), members[0]), members]))
    for numbers, _ in facts.bundles:
        members = unit[numbers[numbers != UNLABELLED]]
        if len(members):
            edges.append(np.stack([np.full(len(members), members[0]), members]))
    return components(int(unit.max()) + 1, _joined(edges))
