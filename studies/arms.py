"""What is compared: networks of equally many non-zeros that differ in structure alone, and a few that spend more."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from studies.errors import StudyError


@dataclass(frozen=True)
class Arm:
    """One way to spend the non-zeros.

    Attributes:
        kind: ``"dense"``, ``"split"`` (a dense network whose neurons are split), ``"wide"`` (wide and sparse from
            scratch), ``"drop"`` (wide and dense, and DropConnect keeps as many incoming weights as the budget in each
            step), or ``"larger"`` (dense, with more parameters).
        partition: For ``"split"``: a partition of ``expand``, or one of those of
            :mod:`studies.splitting`.
        budget: For ``"split"``: as for ``expand``.
        split: For ``"split"``: the epoch of the split; None is the setting's.
        alpha: For ``"split"``: children of each neuron; None is the setting's.
        groups: For ``"split"`` with the partition ``"shared"`` or ``"contiguous"``: how many groups of neurons draw one
            each; None for one partition that serves all.
        again: For ``"split"``: the epoch at which every child is split once more, in two, at random or by what its
            inputs have to do with each other as before, with a refit of the classifier
            (:class:`~fpe_lightning.pruning.discriminant.DiscriminantRefit`); None for never.
        redraw: For ``"split"``: draw the incoming weights of the children anew under their masks.
        optimizer_state: For ``"split"``: as for ``expand``.
        allocation: For ``"wide"``: as for ``WideSparseMLP``.
        placed: For ``"wide"``: a partition of the study, made for the untrained network, by which neurons choose
            their inputs; None for random masks.
        factor: For ``"larger"``: parameters, as a multiple of those of the dense network.
        members: Networks whose mean is one run.
    """

    kind: str
    partition: str = "random"
    budget: str = "total"
    split: int | None = None
    alpha: int | None = None
    groups: int | None = None
    again: int | None = None
    redraw: bool = False
    optimizer_state: str = "follow"
    allocation: str = "hidden"
    placed: str | None = None
    factor: float = 1.0
    members: int = 1

    @property
    def marked(self) -> bool:
        """Whether it spends more non-zeros than the others."""
        return self.members > 1 or self.kind in ("larger", "drop")


ARMS: dict[str, Arm] = {
    "dense": Arm("dense"),
    "random": Arm("split"),
    "shared": Arm("split", "shared"),
    "feature": Arm("split", "feature"),
    "clause": Arm("split", "clause"),
    "overlapping": Arm("split", "overlapping"),
    "coactivation": Arm("split", "coactivation"),
    "interaction": Arm("split", "interaction"),
    "wide_sparse": Arm("wide"),
    "wide_sparse_even": Arm("wide", allocation="even"),
    "wide_placed": Arm("wide", placed="interaction"),
    "constant_fan_in": Arm("wide", allocation="fan_in"),
    "dropconnect": Arm("drop"),
    "dense_larger": Arm("larger", factor=1.2),
    "ensemble": Arm("split", members=3),
}
"""Arms by name. Those that need the clauses ("clause") know more than a network can."""

SUFFIXES: dict[str, dict[str, Any]] = {
    "incoming": {"budget": "incoming"},
    "outgoing": {"budget": "outgoing"},
    "global": {"budget": "global"},
    "columns": {"budget": "columns"},
    "blocks": {"budget": "blocks"},
    "redraw": {"redraw": True},
    "reset": {"optimizer_state": "reset"},
}
"""Endings that change an arm which splits; those of :data:`NUMBERED` do too."""

NUMBERED: dict[str, str] = {"at_": "split", "x": "alpha", "of_": "groups", "then_": "again"}
"""Endings with a number: ``_at_<epoch>``, ``_x<children>``, ``_of_<groups of neurons>`` and ``_then_<epoch>``, for a
second split.
"""

BASELINES = ("dense", "wide_sparse")
"""The arms that every other one is compared with."""


def arm_named(name: str) -> Arm:
    """Look an arm up: a name of :data:`ARMS`, followed for a split by any of ``_incoming``, ``_reset``, ``_at_2``, ...

    Raises:
        StudyError: If it does not exist.

    Example:
        >>> arm_named("random_incoming_at_2").split, arm_named("random").budget
        (2, 'total')
    """
    base, changes = name, dict[str, Any]()
    plain, numbered = "|".join(SUFFIXES), "|".join(NUMBERED)
    while base not in ARMS and (found := re.fullmatch(rf"(.+)_(?:({plain})|({numbered})(\d+))", base)):
        base, suffix, kind, number = found.groups()
        changes |= SUFFIXES[suffix] if suffix else {NUMBERED[kind]: int(number)}
    if base not in ARMS:
        nearest = difflib.get_close_matches(base, ARMS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        endings = ", ".join(f"_{suffix}" for suffix in [*SUFFIXES, *(f"{kind}<n>" for kind in NUMBERED)])
        raise StudyError(
            f"Unknown arm {name!r}.{hint} Known: {', '.join(ARMS)}; those that split may end in {endings}."
        )
    if changes and ARMS[base].kind != "split":
        raise StudyError(f"Arm {name!r} cannot be: {base!r} does not split; drop what follows it.")
    return replace(ARMS[base], **changes)


def arms_named(names: list[str]) -> dict[str, Arm]:
    """Look arms up, each by :func:`arm_named`.

    Example:
        >>> arms_named(["dense"])["dense"].kind
        'dense'
    """
    return {name: arm_named(name) for name in names}
