"""The figure of a study that shows every arm in every setting, and the common parts of its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studies.arms import BASELINES
from studies.runs import Runs
from studies.statistics import Estimate, estimate

STYLES: dict[str, Literal[":", "--"]] = dict(zip(BASELINES, (":", "--"), strict=True))
"""Lines of the baselines."""
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933")
"""Okabe and Ito's colours, which the colour-blind can tell apart."""
ACROSS = 4
"""Panels in a row, at most."""


def arms_figure(runs: Runs) -> Figure:
    """Draw test accuracy of every arm: each seed as a faint mark, next to it the mean with its 95 % interval.

    Args:
        runs: Runs of one study.

    Returns:
        A figure with one panel a setting; dotted and dashed lines are the means of the baselines.
    """
    settings, labels = runs.setting_names, runs.labels
    down = -(-len(settings) // ACROSS)
    across = -(-len(settings) // down)  # rows of equal length, as far as possible
    drawn, axes = panels(
        len(settings), across, (3.4 * across + 2.4, down * (0.3 * len(labels) + 1.0) + 1.0), sharey=True
    )
    for ax, setting in zip(axes, settings, strict=False):
        for baseline, style in STYLES.items():
            if values := runs.percent(setting, baseline):
                ax.axvline(estimate(values).mean, color="0.45", linestyle=style, linewidth=1)
        for y, label in enumerate(labels):
            marks(ax, y, runs.percent(setting, label), runs.arms[label].marker)
        dress(ax, setting if "=" in setting else f"setting {setting}", "test accuracy (%)", grid="x")
    axes[0].set_yticks(range(len(labels)), [words(runs.shown(label)) for label in labels])
    axes[0].invert_yaxis()
    kinds = {arm.legend: arm.marker for arm in map(runs.arms.__getitem__, labels)}
    entries = [entry(legend, color="black", marker=marker, linestyle="") for legend, marker in kinds.items()]
    entries += [
        entry(f"mean of {words(name)}", color="0.45", linestyle=STYLES[name]) for name in STYLES if name in labels
    ]
    legend(drawn, [*entries, entry("one seed", color="0.6", marker=".", linestyle="")], 3)
    return drawn


def marks(ax: Axes, y: float, values: Mapping[int, float], marker: str, ends: tuple[float, float] = (0, 100)) -> None:
    """Draw the values of all seeds, and next to them their mean with its interval.

    Args:
        ax: Where to draw.
        y: The line.
        values: By seed.
        marker: Of the arm.
        ends: The range of possible values; intervals end there.
    """
    if not values:
        return
    # Marks of equal values would hide each other; a fixed spread tells them apart.
    spread = y + 0.15 + 0.2 * np.linspace(0, 1, len(values))
    ax.plot(list(values.values()), spread, marker, color="0.6", markersize=2.5, alpha=0.7, zorder=1)
    found = estimate(values)
    reach = reach_of([found], ends) if found.count > 1 else None
    ax.errorbar(found.mean, y - 0.08, xerr=reach, fmt=marker, color="black", markersize=5, capsize=3, zorder=2)


def reach_of(found: Sequence[Estimate], ends: tuple[float, float] = (0, 100)) -> np.ndarray:
    """How far intervals go down and up, ``(2, n)``, within the range of possible values."""
    down = [each.mean - max(each.low, ends[0]) for each in found]
    up = [min(each.high, ends[1]) - each.mean for each in found]
    return np.nan_to_num([down, up])


def curve(ax: Axes, points: Mapping[float, Mapping[int, float]], label: str, style: int) -> None:
    """Means with intervals, told apart by colour and mark alike; lines are broken once the colours repeat."""
    found = {value: estimate(seeds) for value, seeds in points.items() if seeds}
    ax.errorbar(
        list(found),
        np.array([each.mean for each in found.values()]),
        yerr=reach_of(list(found.values())),
        label=words(label),
        color=COLORS[style % len(COLORS)],
        linestyle="-" if style < len(COLORS) else "--",
        marker="so^DvP*X<>"[style % 10],
        markersize=4,
        linewidth=1,
        capsize=2,
    )


def panels(count: int, across: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` visible panels, ``across`` in a row."""
    drawn = Figure(figsize=size, layout="constrained")
    axes = list(drawn.subplots(-(-count // across), across, squeeze=False, **shared).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    return drawn, axes


def dress(ax: Axes, title: str = "", x: str = "", y: str = "", grid: Literal["both", "x"] = "both") -> None:
    """Write the labels of a panel, and draw a grid behind its marks."""
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(axis=grid, color="0.92")
    ax.set_axisbelow(True)


def entry(label: str, **style: Any) -> Line2D:
    """A line of a legend."""
    return Line2D([], [], label=label, **style)


def legend(drawn: Figure, entries: Iterable[Any] = (), columns: int = 4) -> None:
    """Write one legend below all panels: each label of the panels once, then further entries."""
    found = {handle.get_label(): handle for ax in drawn.axes for handle in ax.get_legend_handles_labels()[0]}
    handles = [*found.values(), *entries]
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def words(label: str) -> str:
    """A label with spaces."""
    return label.replace("_", " ")
