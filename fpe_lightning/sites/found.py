"""The outcome of a search: sites, and the widths that are none."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.site import Site


@dataclass(frozen=True)
class Found:
    """The widths of a model.

    Attributes:
        sites: Widths that can be widened.
        refusals: Other widths, with reasons.
        frozen: Parameter axes (parameter, axis) that the forward uses and that belong to no site.
    """

    sites: tuple[Site, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    frozen: frozenset[tuple[str, int]] = frozenset()


def summary_of(refusals: tuple[Refusal, ...] | list[Refusal], most: int = 4) -> str:
    """Count widths by the reasons that leave them out, the most frequent first.

    Args:
        refusals: The widths.
        most: Reasons to name; the others are counted together.

    Example:
        >>> summary_of([Refusal("a", "unknown operator fft"), Refusal("b", "unknown operator fft")])
        '2 widths (unknown operator fft)'
    """
    reasons = Counter(_kind(refusal.reason) for refusal in refusals)
    named = [f"{_widths(count)} ({reason})" for reason, count in reasons.most_common(most)]
    others = sum(reasons.values()) - sum(count for _, count in reasons.most_common(most))
    return ", ".join([*named, f"{_widths(others)} (other reasons)"] if others else named)


def _widths(count: int) -> str:
    return f"{count} width{'s' if count > 1 else ''}"


def _kind(reason: str) -> str:
    """A reason without the names and numbers in it."""
    return re.sub(r"\b[\w]+(\.[\w]+)+\b", "...", reason.partition(" (")[0].partition(": ")[0])
