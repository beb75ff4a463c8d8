"""The figures of a study: every arm in every setting, and how accuracy moves with a value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fpe_lightning.studies.arms import BASELINES, arm_named
from fpe_lightning.studies.overview import values_of
from fpe_lightning.studies.results import Row
from fpe_lightning.studies.statistics import Estimate, estimate
from fpe_lightning.studies.tables import by_seed, names

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
"""Panels in a row."""


def arms_figure(rows: Sequence[Row]) -> Figure:
    """Draw test accuracy of every arm: each seed as a faint mark, the mean with its 95 % interval beside it.

    Args:
        rows: Runs of one study.

    Returns:
        A figure with one panel a setting; dotted and dashed lines are the means of the baselines.
    """
    settings, arms = names(rows, "setting"), names(rows, "arm")
    across = min(ACROSS, len(settings))
    down = -(-len(settings) // across)
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
        reach = _reach([found]) if found.count > 1 else None
        ax.errorbar(found.mean, y - 0.08, xerr=reach, fmt=marker, color="black", markersize=5, capsize=3, zorder=2)
    ax.set_title(setting if "=" in setting else f"setting {setting}", fontsize=9)
    ax.set_xlabel("test accuracy (%)")
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)


def curves_figure(rows: Sequence[Row]) -> Figure | None:
    """Draw test accuracy against every number that a grid moves, and against the epoch of the split.

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
    chosen = {key: panel for key, panel in panels.items() if len(panel) > 2}
    arms = names(rows, "arm")
    moved = {arm: arm_named(arm).split for arm in arms}
    epochs = sorted({epoch for epoch in moved.values() if epoch is not None})
    over_time = names(rows, "setting") if len(epochs) > 2 else []
    count = len(chosen) + len(over_time)
    if not count:
        return None
    across = min(3, count)
    down = -(-count // across)
    drawn = Figure(figsize=(3.6 * across + 0.4, 2.7 * down + 1.0), layout="constrained")
    axes = list(drawn.subplots(down, across, squeeze=False).flat)
    still = [arm for arm in arms if not over_time or moved[arm] is None]
    lines = {_family(arm): style for style, arm in enumerate(dict.fromkeys(map(_family, arms)))}
    for ax, ((key, others), panel) in zip(axes, chosen.items(), strict=False):
        for arm in still if over_time else arms:
            points = {value: by_seed(rows, setting, arm) for value, setting in sorted(panel.items())}
            curve(ax, points, _family(arm), lines[_family(arm)])
        ax.set_title(others, fontsize=9)
        ax.set_xlabel(key.replace("_", " "))
    for ax, setting in zip(axes[len(chosen) :], over_time, strict=False):
        for family in dict.fromkeys(_family(arm) for arm in arms if moved[arm] is not None):
            own = {moved[arm]: arm for arm in arms if moved[arm] is not None and _family(arm) == family}
            points = {float(epoch or 0): by_seed(rows, setting, arm) for epoch, arm in own.items()}
            if len(points) > 1:
                curve(ax, points, family, lines[family])
        for baseline, style in STYLES.items():
            if values := by_seed(rows, setting, baseline):
                ax.axhline(estimate(values).mean, color="0.45", linestyle=style, linewidth=1)
        ax.set_title(setting, fontsize=9)
        ax.set_xlabel("epoch of the split")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[:count]:
        ax.set_ylabel("test accuracy (%)")
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
    for ax in axes[count:]:
        ax.set_visible(False)
    entries = {h.get_label(): h for ax in axes for h in ax.get_legend_handles_labels()[0]}
    entries |= {
        name: Line2D([], [], color="0.45", linestyle=style, label=f"{name.replace('_', ' ')}, at any epoch")
        for name, style in STYLES.items()
        if over_time and name in arms
    }
    drawn.legend(handles=list(entries.values()), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return drawn


def _reach(found: Sequence[Estimate]) -> np.ndarray:
    """How far intervals go down and up, ``(2, n)``; nothing is drawn beyond what an accuracy can be."""
    down = [each.mean - max(each.low, 0.0) for each in found]
    up = [min(each.high, 100.0) - each.mean for each in found]
    return np.nan_to_num([down, up])


def _family(arm: str) -> str:
    return re.sub(r"_at_\d+", "", arm)


def curve(ax: Axes, points: dict[float, dict[int, float]], label: str, style: int) -> None:
    """Means with intervals, told apart by colour and mark alike."""
    found = {value: estimate(seeds) for value, seeds in points.items() if seeds}
    means = np.array([each.mean for each in found.values()])
    ax.errorbar(
        list(found),
        means,
        yerr=_reach(list(found.values())),
        label=label.replace("_", " "),
        color=COLORS[style % len(COLORS)],
        marker="so^DvP*X<>"[style % 10],
        markersize=4,
        linewidth=1,
        capsize=2,
    )
