"""A grid of many settings in a few tables: arms down, values of one number across."""

from __future__ import annotations

import re
from collections.abc import Mapping

from studies.runs import Runs
from studies.statistics import estimate
from studies.tables import Table, differences, nonzeros, plus_minus

MANY = 4
"""Settings from which on a grid is shown at a glance first."""


def values_of(setting: str) -> tuple[str, dict[str, float]]:
    """The base and the numbers that a grid wrote into the name of a setting.

    Example:
        >>> values_of("A hidden=4 alpha=2")
        ('A', {'hidden': 4.0, 'alpha': 2.0})
    """
    found = re.findall(r" (\w+)=([\d.e-]+)(?= |$)", setting)
    return re.sub(r" \w+=[\d.e-]+(?= |$)", "", setting), {key: float(value) for key, value in found}


def by_number(settings: list[str], key: str) -> dict[str, dict[float, str]]:
    """Settings that differ in one number alone, by that number, for each combination of the others.

    Example:
        >>> by_number(["A hidden=4 alpha=2", "A hidden=8 alpha=2", "B"], "hidden")
        {'A alpha=2': {4.0: 'A hidden=4 alpha=2', 8.0: 'A hidden=8 alpha=2'}}
    """
    found: dict[str, dict[float, str]] = {}
    for setting in settings:
        base, numbers = values_of(setting)
        if key in numbers:
            others = " ".join([base, *(f"{name}={value:g}" for name, value in numbers.items() if name != key)])
            found.setdefault(others, {})[numbers[key]] = setting
    return found


def overview(runs: Runs) -> list[Table]:
    """Accuracies and paired differences of a whole grid.

    Args:
        runs: Runs of one study.

    Returns:
        For the first number of a grid, and each combination of the others, a table of test accuracies and one of the
        differences to each baseline; none of fewer than :data:`MANY` settings.

    Example:
        >>> from studies.arms import Dense
        >>> from studies.results import Row
        >>> rows = [Row("dense", 0, "done", "", 9, 1, 0.8, 0.8, 1, f"A hidden={h} alpha=2") for h in (4, 8, 16, 32)]
        >>> [table] = overview(Runs(rows, {"dense": Dense()}))
        >>> table.header
        ('arm', 'hidden=4', 'hidden=8', 'hidden=16', 'hidden=32')
        >>> table.lines[0]
        ('non-zeros', '9', '9', '9', '9')
    """
    settings = runs.setting_names
    if len(settings) < MANY:
        return []
    first = {setting: next(iter(values_of(setting)[1]), "") for setting in settings}
    found = []
    for key in dict.fromkeys(first.values()):
        own = [setting for setting in settings if first[setting] == key]
        if not key:
            found += _tables(runs, "", {setting: setting for setting in own})
        for others, panel in by_number(own, key).items():
            columns = {f"{key}={value:g}": setting for value, setting in panel.items()}
            found += _tables(runs, f" of {others} by {key.replace('_', ' ')}", columns)
    return found


def _tables(runs: Runs, of: str, columns: Mapping[str, str]) -> list[Table]:
    """The tables of one group of settings, by their columns; ``of`` is part of the titles."""
    own = runs.of(*columns.values())
    cheap = [label for label in own.labels if not runs.arms[label].marked]
    found = {label: [own.percent(setting, label) for setting in columns.values()] for label in own.labels}
    lines = [("non-zeros", *(nonzeros(runs.of(setting), *cheap) or "-" for setting in columns.values()))]
    lines += [(runs.shown(label), *(plus_minus(estimate(each)) for each in cells)) for label, cells in found.items()]
    seeds = sorted({len(each) for cells in found.values() for each in cells})
    title = f"Test accuracy{of} in %, mean ± standard error over {'/'.join(map(str, seeds))} seeds"
    parts = {name: (setting, "test") for name, setting in columns.items()}
    return [Table(title, ("arm", *columns), lines), *differences(own, parts, f"Test accuracy{of}")]
