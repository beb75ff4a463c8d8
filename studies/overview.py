"""A grid of many settings in a few tables: arms down, values of one number across."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from studies.arms import BASELINES, arm_named
from studies.results import Row
from studies.statistics import estimate
from studies.tables import Table, by_seed, difference, names, plus_minus

MANY = 4
"""Settings from which on a grid is shown at a glance first."""


def values_of(setting: str) -> tuple[str, dict[str, float]]:
    """What a grid wrote into the name of a setting: its base and its numbers.

    Example:
        >>> values_of("A hidden=4 alpha=2")
        ('A', {'hidden': 4.0, 'alpha': 2.0})
    """
    found = re.findall(r" (\w+)=([\d.e-]+)(?= |$)", setting)
    return re.sub(r" \w+=[\d.e-]+(?= |$)", "", setting), {key: float(value) for key, value in found}


def overview(rows: Sequence[Row]) -> list[Table]:
    """Accuracies and paired differences of a whole grid.

    Args:
        rows: Runs of one study.

    Returns:
        For each number that a grid moves first, and each combination of the others, a table of test accuracies and one
        of the differences to each baseline; none of fewer than :data:`MANY` settings.

    Example:
        >>> rows = [Row("dense", 0, "done", "", 9, 1, 0.8, 0.8, 1, f"A hidden={h} alpha=2") for h in (4, 8, 16, 32)]
        >>> [table] = overview(rows)
        >>> table.header
        ('arm', 'hidden=4', 'hidden=8', 'hidden=16', 'hidden=32')
        >>> table.lines[0]
        ('non-zeros', '9', '9', '9', '9')
    """
    settings = names(rows, "setting")
    if len(settings) < MANY:
        return []
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for setting in settings:
        base, numbers = values_of(setting)
        key, *others = numbers or [""]
        title = " ".join([base, *(f"{other}={numbers[other]:g}" for other in others)]) if numbers else ""
        groups.setdefault((key, title), {})[f"{key}={numbers[key]:g}" if numbers else base] = setting
    return [
        table
        for (key, title), columns in groups.items()
        for table in _tables(rows, f" of {title} by {key.replace('_', ' ')}" if key else "", columns)
    ]


def _tables(rows: Sequence[Row], of: str, columns: Mapping[str, str]) -> list[Table]:
    """Those of one group of settings, by their columns; ``of`` stands in the titles."""
    own = [row for row in rows if row.setting in columns.values()]
    arms = names(own, "arm")
    label = {arm: arm + "*" * arm_named(arm).marked for arm in arms}
    header = ("arm", *columns)
    seeds = sorted({len(by_seed(own, setting, arm)) for setting in columns.values() for arm in arms})
    lines = [("non-zeros", *(_nonzeros(own, setting) for setting in columns.values()))]
    lines += [
        (label[arm], *(plus_minus(estimate(by_seed(own, setting, arm))) for setting in columns.values()))
        for arm in arms
    ]
    count = f"{'/'.join(map(str, seeds))} seeds"
    found = [Table(f"Test accuracy{of} in %, mean ± standard error over {count}", header, lines, [])]
    for baseline in BASELINES:
        lines = [
            (label[arm], *(difference(own, setting, arm, baseline) for setting in columns.values()))
            for arm in arms
            if arm != baseline
        ]
        if any(cell != "-" for line in lines for cell in line[1:]):
            found.append(
                Table(f"Test accuracy{of} minus {baseline}, paired, in points [95 %], then relative", header, lines, [])
            )
    return found


def _nonzeros(rows: Sequence[Row], setting: str) -> str:
    """Of the arms that spend no more than the others."""
    own = [row for row in rows if row.setting == setting and row.status == "done" and not arm_named(row.arm).marked]
    return "/".join(map(str, sorted({row.nonzeros for row in own}))) or "-"
