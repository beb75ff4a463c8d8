"""The figures of a study that show how accuracy moves with a number, and with the epoch of the split."""

from __future__ import annotations

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from studies.arms import arm_named
from studies.figures import STYLES, curve
from studies.overview import values_of
from studies.results import Row
from studies.statistics import estimate
from studies.tables import by_seed, names

FEW = 8
"""Curves of a panel; where there are more, arms that spend more non-zeros than the others are left out."""
WIDE = 8
"""How many times the smallest value the largest is from where on an axis shows powers of two."""

LABELS = {
    "hidden": "neurons before the split",
    "alpha": "children of a neuron (alpha)",
    "literals": "literals of a clause",
    "split": "epoch of the split",
    "lr": "learning rate",
}
"""What stands below an axis, where the name of an attribute does not say it."""


def curves_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw test accuracy against every number that a grid moves.

    Of arms that differ in the epoch of their split the one that splits when the setting says, or else the earliest
    after epoch 0, stands for all; :func:`epochs_figure` shows the others.

    Args:
        rows: Runs of one study.

    Returns:
        A panel for each number and combination of the others; bars are 95 % intervals over seeds. None where nothing
        takes three values.
    """
    panels: dict[tuple[str, str], dict[float, str]] = {}
    for setting in names(rows, "setting"):
        base, numbers = values_of(setting)
        for key, value in numbers.items():
            others = " ".join([base, *(f"{k}={v:g}" for k, v in numbers.items() if k != key)])
            panels.setdefault((key, others), {})[value] = setting
    chosen: dict[tuple[str, str], dict[float, str]] = {}
    drawn_already: set[str] = set()
    for place, panel in panels.items():
        # A setting that stands in a panel of its first number does not come again with the second.
        if len(panel) > 2 and not (drawn_already & set(panel.values()) and place[0] not in {k for k, _ in chosen}):
            chosen[place] = panel
            drawn_already |= set(panel.values())
    if not chosen:
        return None
    arms = few(_one_of_each_family(names(rows, "arm")))
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    drawn = Figure(figsize=(3.6 * across + 0.4, 2.7 * down + 1.0), layout="constrained")
    axes = list(drawn.subplots(down, across, squeeze=False).flat)
    for ax, ((key, others), panel) in zip(axes, chosen.items(), strict=False):
        for style, arm in enumerate(arms):
            curve(ax, {value: by_seed(rows, setting, arm) for value, setting in sorted(panel.items())}, arm, style)
        if min(panel) > 0 and max(panel) >= WIDE * min(panel):
            ax.set_xscale("log", base=2)
            ax.set_xticks(sorted(panel), [f"{value:g}" for value in sorted(panel)])
            ax.xaxis.set_minor_locator(NullLocator())
        elif all(value == int(value) for value in panel):
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _label(ax, others if " " in others else f"setting {others}", LABELS.get(key, key.replace("_", " ")))
    _finish(drawn, axes, len(chosen), [])
    return drawn


def epochs_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw test accuracy against the epoch of the split, where arms differ in it.

    Args:
        rows: Runs of one study.

    Returns:
        A panel for each setting in which something was split, those of a grid in rows of its first number; bars are
        95 % intervals over seeds, lines are the means of the baselines. None where there are fewer than three epochs.
    """
    arms = names(rows, "arm")
    moved = {arm: epoch for arm in arms if (epoch := arm_named(arm).split) is not None}
    if len(set(moved.values())) < 3:
        return None
    ran = {row.setting for row in rows if row.status == "done" and row.arm in moved}
    settings = [setting for setting in names(rows, "setting") if setting in ran]
    if not settings:
        return None
    families = {family: {moved[arm]: arm for arm in moved if _family(arm) == family} for family in map(_family, moved)}
    numbers = [values_of(setting)[1] for setting in settings]
    first = {next(iter(found.items()), ("", 0.0)) for found in numbers}
    regular = 1 < len(first) <= 6 and len(settings) % len(first) == 0
    across = len(first) if regular else min(3, len(settings))
    if regular:
        settings = sorted(settings, key=lambda setting: list(values_of(setting)[1].values())[::-1])
    down = -(-len(settings) // across)
    drawn = Figure(figsize=(2.7 * across + 0.6, 2.3 * down + 0.9), layout="constrained")
    axes = list(drawn.subplots(down, across, squeeze=False).flat)
    for ax, setting in zip(axes, settings, strict=False):
        shown = {family: own for family, own in families.items() if len(own) > 1}
        for style, (family, own) in enumerate(shown.items()):
            curve(ax, {float(epoch): by_seed(rows, setting, arm) for epoch, arm in own.items()}, family, style)
        for baseline, line in STYLES.items():
            if values := by_seed(rows, setting, baseline):
                ax.axhline(estimate(values).mean, color="0.45", linestyle=line, linewidth=1)
        _label(ax, setting, LABELS["split"])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    lines = [
        Line2D([], [], color="0.45", linestyle=style, label=f"{name.replace('_', ' ')}, at any epoch")
        for name, style in STYLES.items()
        if name in arms
    ]
    _finish(drawn, axes, len(settings), lines)
    return drawn


def few(arms: Sequence[str]) -> list[str]:
    """The arms, or where they are many those that spend no more non-zeros than the others.

    Example:
        >>> few(["dense", "ensemble"]), few(["dense", "ensemble", *(f"random_at_{epoch}" for epoch in range(7))])[:2]
        (['dense', 'ensemble'], ['dense', 'random_at_0'])
    """
    return [arm for arm in arms if len(arms) <= FEW or not arm_named(arm).marked]


def _one_of_each_family(arms: Sequence[str]) -> list[str]:
    """Of arms that differ in the epoch of their split alone, one."""
    found: dict[str, str] = {}
    for arm in arms:
        family, epoch = _family(arm), arm_named(arm).split
        known = arm_named(found[family]).split if family in found else 0
        if family not in found or (known == 0 and epoch):
            found[family] = arm
    return list(found.values())


def _family(arm: str) -> str:
    return re.sub(r"_at_\d+", "", arm)


def _label(ax: Axes, title: str, x: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(x)
    ax.set_ylabel("test accuracy (%)")
    ax.grid(color="0.92")
    ax.set_axisbelow(True)


def _finish(drawn: Figure, axes: Sequence[Axes], count: int, lines: list[Line2D]) -> None:
    """Hide panels that are not needed, and write the legend."""
    for ax in axes[count:]:
        ax.set_visible(False)
    entries = {handle.get_label(): handle for ax in axes for handle in ax.get_legend_handles_labels()[0]}
    drawn.legend(handles=[*entries.values(), *lines], loc="outside lower center", ncols=4, frameon=False, fontsize=8)
