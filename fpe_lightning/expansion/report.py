"""The result of an expansion, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class ExpansionWarning(UserWarning):
    """An expansion that is possible but unlikely to help."""


@dataclass(frozen=True)
class SiteReport:
    """One expanded site.

    Attributes:
        name: The producer's qualified name.
        alpha: Expansion factor.
        width_before: Neurons before the split.
        width_after: Neurons after it.
        fan_in_before: Mean number of incoming weights of a neuron before the split.
        fan_in_after: The same of a child, after weights were pruned.
        nonzeros: Non-zero parameters of the site: incoming, outgoing, biases and norms; the same before and
            after, unless sites pay for each other (``prune="global"``): then before.
        removed_incoming: Incoming weights that were pruned.
        removed_outgoing: Outgoing weights (of the copies and the originals together) that were pruned.
    """

    name: str
    alpha: int
    width_before: int
    width_after: int
    fan_in_before: float
    fan_in_after: float
    nonzeros: int
    removed_incoming: int
    removed_outgoing: int


@dataclass(frozen=True)
class ExpansionReport:
    """The result of :func:`~fpe_lightning.expansion.expand.expand`.

    Attributes:
        nonzeros_before: Non-zero parameters of the whole model before; see ``count_nonzeros``.
        nonzeros_after: The same after; always equal.
        sites: One report for each expanded site, in the order of expansion.
        layouts: With ``layout="auto"``, the choice for each module and the times of all layouts.
        teachers: Parts of the model that follow another part and were split with its masks, with the name of that part.
    """

    nonzeros_before: int
    nonzeros_after: int
    sites: tuple[SiteReport, ...]
    layouts: Mapping[str, str] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """A short table for a person to read."""
        head = f"{'site':<24}{'alpha':>6}{'width':>14}{'fan-in':>18}{'removed in/out':>18}"
        rows = [
            f"{site.name:<24}{site.alpha:>6}{f'{site.width_before} -> {site.width_after}':>14}"
            f"{f'{site.fan_in_before:.1f} -> {site.fan_in_after:.1f}':>18}"
            f"{f'{site.removed_incoming}/{site.removed_outgoing}':>18}"
            for site in self.sites
        ]
        total = f"non-zero parameters: {self.nonzeros_before} before, {self.nonzeros_after} after"
        layouts = [f"layout of {name}: {choice}" for name, choice in self.layouts.items()]
        teachers = [f"{name} follows {student}, with its masks" for name, student in self.teachers.items()]
        return "\n".join([head, *rows, total, *layouts, *teachers])
