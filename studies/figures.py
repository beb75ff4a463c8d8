"""The figure of a study that shows every arm in every setting, and what its figures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studies.arms import BASELINES, arm_named
from studies.results import Row
from studies.statistics import Estimate, estimate
from studies.tables import by_seed, names

MARKERS = {"dense": "s", "larger": "D", "split": "o", "wide": "^", "drop": "v"}
"""Kinds of arms are told apart by shape, so that the figure reads in grey."""
LABELS = {
    "dense": "dense",
    "larger": "dense, larger",
    "split": "split (FPE)",
    "wide": "wide and sparse from scratch",
    "drop": "DropConnect",
}
STYLES: dict[str, Literal[":", "--"]] = dict(zip(BASELINES, (":", "--"), strict=True))
"""Lines of the baselines."""
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
"""Okabe and Ito's colours, which the colour-blind can tell apart."""
ACROSS = 4
"""Panels in a row, at most."""


def arms_figure(rows: Sequence[Row]) -> Figure:
    """Draw test accuracy of every arm: each seed as a faint mark, the mean with its 95 % interval beside it.

    Args:
        rows: Runs of one study.

    Returns:
        A figure with one panel a setting; dotted and dashed lines are the means of the baselines.
    """
    settings, arms = names(rows, "setting"), names(rows, "arm")
    down = -(-len(settings) // ACROSS)
    across = -(-len(settings) // down)  # rows of equal length, as far as that goes
    size = (3.4 * across + 2.4, down * (0.3 * len(arms) + 1.0) + 1.0)
    drawn = Figure(figsize=size, layout="constrained")
    axes = list(drawn.subplots(down, across, sharey=True, squeeze=False).flat)
    for ax, setting in zip(axes, settings, strict=False):
        _arms_panel(ax, rows, setting, arms)
    for ax in axes[len(settings) :]:
        ax.set_visible(False)
    first = axes[0]
    first.set_yticks(range(len(arms)), [arm.replace("_", " ") + "*" * arm_named(arm).marked for arm in arms])
    first.invert_yaxis()
    kinds = dict.fromkeys(arm_named(arm).kind for arm in arms)
    entries = [Line2D([], [], color="black", marker=MARKERS[kind], linestyle="", label=LABELS[kind]) for kind in kinds]
    entries += [
        Line2D([], [], color="0.45", linestyle=style, label=f"mean of {name.replace('_', ' ')}")
        for name, style in STYLES.items()
        if name in arms
    ]
    entries.append(Line2D([], [], color="0.6", marker=".", linestyle="", label="one seed"))
    drawn.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawn


def _arms_panel(ax: Axes, rows: Sequence[Row], setting: str, arms: Sequence[str]) -> None:
    for baseline, style in STYLES.items():
        if values := by_seed(rows, setting, baseline):
            ax.axvline(estimate(values).mean, color="0.45", linestyle=style, linewidth=1)
    for y, arm in enumerate(arms):
        values = by_seed(rows, setting, arm)
        if not values:
            continue
        marker, found = MARKERS[arm_named(arm).kind], estimate(values)
        # Marks of equal accuracy would hide each other; a fixed spread tells them apart.
        spread = y + 0.15 + 0.2 * np.linspace(0, 1, len(values))
        ax.plot(list(values.values()), spread, marker, color="0.6", markersize=2.5, alpha=0.7, zorder=1)
        reach = reach_of([found]) if found.count > 1 else None
        ax.errorbar(found.mean, y - 0.08, xerr=reach, fmt=marker, color="black", markersize=5, capsize=3, zorder=2)
    ax.set_title(setting if "=" in setting else f"setting {setting}", fontsize=9)
    ax.set_xlabel("test accuracy (%)")
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)


def reach_of(found: Sequence[Estimate]) -> np.ndarray:
    """How far intervals go down and up, ``(2, n)``; nothing is drawn beyond what an accuracy can be."""
    down = [each.mean - max(each.low, 0.0) for each in found]
    up = [min(each.high, 100.0) - each.mean for each in found]
    return np.nan_to_num([down, up])


def curve(ax: Axes, points: dict[float, dict[int, float]], label: str, style: int) -> None:
    """Means with intervals, told apart by colour and mark alike; broken lines where colours come again."""
    found = {value: estimate(seeds) for value, seeds in points.items() if seeds}
    means = np.array([each.mean for each in found.values()])
    ax.errorbar(
        list(found),
        means,
        yerr=reach_of(list(found.values())),
        label=label.replace("_", " "),
        color=COLORS[style % len(COLORS)],
        linestyle="-" if style < len(COLORS) else "--",
        marker="so^DvP*X<>"[style % 10],
        markersize=4,
        linewidth=1,
        capsize=2,
    )
