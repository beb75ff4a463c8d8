"""What the study of interference reports: measures, their fold changes, and fits of the gain on each of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from studies.arms import arm_named
from studies.figures import COLORS
from studies.findings import Findings
from studies.fits import Fit, fit
from studies.results import Row
from studies.statistics import estimate
from studies.tables import Table, by_seed, names

LABELS = {
    "capacity": "feature capacity",
    "cosine": "mean cosine similarity",
    "absolute_cosine": "mean absolute cosine similarity",
    "collisions": "clause collisions",
    "coverage": "clause coverage",
}
"""Measures by the name of their columns, in the order of the tables."""
WHEN = {"split": "just after / just before the split", "end": "split network / dense one, at the end"}
"""What fold changes compare."""
SHORT = {"split": "at the split", "end": "at the end"}
"""The same in a few words."""
NOTES = (
    "Measures are of the layers that compute the neurons to split, means over those layers and over seeds (those of "
    "clauses: of the first layer). A fold change is a ratio of such means, and the gain is relative: mean test "
    "accuracy over that of the dense network, minus one.",
    "Each point of a fit is an arm in a setting. R^2 has a 95 % bootstrap interval over settings; as they share "
    "seeds, it is rather too narrow. The rank correlation is Spearman's.",
    "A dense layer has collisions and coverage of 1, so those after the split are their own fold changes.",
    "Layers of which fewer than two neurons kept a weight have no cosines, and no point in their fits.",
)


@dataclass(frozen=True)
class Point:
    """An arm in a setting.

    Attributes:
        setting: Name of the setting.
        arm: Name of the arm.
        fold: Fold change of a measure.
        gain: Relative gain in test accuracy, in percent.
    """

    setting: str
    arm: str
    fold: float
    gain: float


def fold(rows: Sequence[Row], setting: str, arm: str, measure: str, when: str) -> float | None:
    """The fold change of a measure in a setting.

    Args:
        rows: Runs of a study.
        setting: Name of the setting.
        arm: One that splits.
        measure: A key of :data:`LABELS`.
        when: A key of :data:`WHEN`.

    Returns:
        A ratio of means over seeds; None where something was not measured, or the denominator is zero.
    """
    above = measured(rows, setting, arm, f"{measure}_{'after' if when == 'split' else 'end'}")
    below = measured(rows, setting, *((arm, f"{measure}_before") if when == "split" else ("dense", f"{measure}_end")))
    if when == "split" and below is None and measure in ("collisions", "coverage"):
        below = 1.0  # that of every dense layer
    return above / below if above is not None and below else None


def measured(rows: Sequence[Row], setting: str, arm: str, column: str) -> float | None:
    """The mean of a measure over seeds; None where a seed has none, as a layer of dead neurons has no cosines."""
    values = by_seed(rows, setting, arm, column)
    mean = estimate(values).mean / 100 if values else math.nan
    return None if math.isnan(mean) else mean


def accuracies(rows: Sequence[Row], setting: str, arm: str) -> tuple[float, float] | None:
    """Mean test accuracy of the dense network and of an arm, in percent, over the seeds that both have."""
    dense, own = by_seed(rows, setting, "dense"), by_seed(rows, setting, arm)
    both = own.keys() & dense.keys()
    if not both:
        return None
    return estimate({seed: dense[seed] for seed in both}).mean, estimate({seed: own[seed] for seed in both}).mean


def gain(rows: Sequence[Row], setting: str, arm: str) -> float | None:
    """Mean test accuracy over that of the dense network, minus one, in percent."""
    dense, own = accuracies(rows, setting, arm) or (0.0, 0.0)
    return 100 * (own / dense - 1) if dense else None


def points(rows: Sequence[Row], measure: str, when: str) -> list[Point]:
    """Every arm that splits in every setting, where both numbers are known."""
    found = []
    for setting in names(rows, "setting"):
        for arm in names(rows, "arm"):
            if arm_named(arm).kind == "split":
                x, y = fold(rows, setting, arm, measure, when), gain(rows, setting, arm)
                if x is not None and y is not None:
                    found.append(Point(setting, arm, x, y))
    return found


def findings(rows: Sequence[Row]) -> Findings:
    """One table of all fits, then tables of fits and of measures and a figure for each name that a grid began with."""
    bases: dict[str, list[Row]] = {}
    for row in rows:
        bases.setdefault(base_of(row.setting), []).append(row)
    fits = [fits_table(base, own) for base, own in bases.items()]
    measures = [measures_table(base, own) for base, own in bases.items()]
    figures, captions = dict[str, Figure](), dict[str, str]()
    for base, own in bases.items():
        if (drawn := scatter(own)) is not None:
            name = f"interference_{re.sub(r'[^a-zA-Z0-9]+', '_', base)}"
            figures[name], captions[name] = drawn, f"{base}, relative gain against fold changes"
    return Findings(NOTES, [summary_table(bases), *fits, *measures], figures, captions)


def base_of(setting: str) -> str:
    """The name that a grid began with.

    Example:
        >>> base_of("two layers hidden=[8, 8] alpha=2")
        'two layers'
    """
    return re.split(r" \w+=", setting, maxsplit=1)[0]


def summary_table(bases: Mapping[str, Sequence[Row]]) -> Table:
    """One line for each name that a grid began with: how much each measure of the weights explains."""
    shown = [(measure, when) for measure in ("capacity", "cosine", "absolute_cosine") for when in WHEN]
    header = ("study", "points", *(f"{LABELS[measure]}, {SHORT[when]}" for measure, when in shown))
    lines = []
    for base, rows in bases.items():
        found = [points(rows, measure, when) for measure, when in shown]
        counts = sorted({len(each) for each in found if each})
        count = " to ".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]])))
        lines.append((base, count or "-", *(_directed(fitted(each)) for each in found)))
    title = "R^2 [95 %] of the relative gain on each fold change, and which way the line goes"
    return Table(title, header, lines, [])


def _directed(line: Fit | None) -> str:
    return _interval(line) if line is None else f"{_interval(line)} {'rising' if line.slope > 0 else 'falling'}"


def fitted(found: Sequence[Point]) -> Fit | None:
    """The line through points, which are clustered by setting."""
    return fit([p.fold for p in found], [p.gain for p in found], [p.setting for p in found])


def fits_table(base: str, rows: Sequence[Row]) -> Table:
    """One line for each measure and kind of fold change, over all arms and for each alone."""
    arms = [arm for arm in names(rows, "arm") if arm_named(arm).kind == "split"]
    plain = ("measure", "fold change", "points", "slope", "R^2 [95 %]", "rank correlation")
    header = (*plain, *(f"R^2, {arm}" for arm in arms))
    lines = []
    for measure, label in LABELS.items():
        for when, meaning in WHEN.items():
            found = points(rows, measure, when)
            if not found:
                continue
            line = fitted(found)
            alone = [fitted([point for point in found if point.arm == arm]) for arm in arms]
            lines.append(
                (
                    label,
                    meaning,
                    str(len(found)),
                    "-" if line is None else f"{line.slope:+.3g}",
                    _interval(line),
                    "-" if line is None else f"{line.rank:+.2f}",
                    *map(_interval, alone),
                )
            )
    title = f"{base}: relative gain in % fitted on fold changes, all arms that split and each alone"
    return Table(title, header, lines, [])


def _interval(line: Fit | None) -> str:
    return "-" if line is None else f"{line.r2:.2f} [{line.low:.2f}, {line.high:.2f}]"


def measures_table(base: str, rows: Sequence[Row]) -> Table:
    """One line for each setting and arm that splits: every measure around the split, and at the end beside dense."""
    shown = [m for m in LABELS if any(f"{m}_after" in row.measures for row in rows)]
    accuracy = "test accuracy in %, dense -> split network (gain)"
    header = ("setting", "arm", accuracy, *(LABELS[measure] for measure in shown))
    lines = []
    for setting in names(rows, "setting"):
        for arm in names(rows, "arm"):
            if arm_named(arm).kind == "split":
                cells = [_cell(rows, setting, arm, measure) for measure in shown]
                lines.append((setting, arm, _accuracies(rows, setting, arm), *cells))
    title = f"{base}: measures before -> after the split (fold change); dense -> split network at the end (fold change)"
    return Table(title, header, lines, [])


def _accuracies(rows: Sequence[Row], setting: str, arm: str) -> str:
    """Mean accuracies, as ``73.5 -> 79.5 (+8.2 %)``."""
    means, won = accuracies(rows, setting, arm), gain(rows, setting, arm)
    return "-" if means is None or won is None else f"{means[0]:.1f} -> {means[1]:.1f} ({won:+.1f} %)"


def _cell(rows: Sequence[Row], setting: str, arm: str, measure: str) -> str:
    """Both pairs of a measure, as ``0.21 -> 0.43 (2.0); 0.20 -> 0.40 (2.0)``."""

    def mean(of: str, moment: str) -> str:
        found = measured(rows, setting, of, f"{measure}_{moment}")
        return "-" if found is None else f"{found:.3f}"

    if measure in ("collisions", "coverage"):
        return f"1 -> {mean(arm, 'after')}"
    ratios = [fold(rows, setting, arm, measure, when) for when in WHEN]
    said = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    around = f"{mean(arm, 'before')} -> {mean(arm, 'after')} ({said[0]})"
    return f"{around}; {mean('dense', 'end')} -> {mean(arm, 'end')} ({said[1]})"


def scatter(rows: Sequence[Row]) -> Figure | None:
    """Draw gains against fold changes with the fitted lines: a row for each kind of fold change.

    Returns:
        A panel for each measure; None where nothing was measured.
    """
    panels = {(measure, when): points(rows, measure, when) for when in WHEN for measure in LABELS}
    panels = {key: found for key, found in panels.items() if found}
    if not panels:
        return None
    shown = [measure for measure in LABELS if any((measure, when) in panels for when in WHEN)]
    drawn = Figure(figsize=(2.7 * len(shown) + 0.4, 2.5 * len(WHEN) + 0.9), layout="constrained")
    axes = drawn.subplots(len(WHEN), len(shown), sharey=True, squeeze=False)
    every = dict.fromkeys(point.arm for found in panels.values() for point in found)
    styles = {arm: (COLORS[1 + i % (len(COLORS) - 1)], "o^sDvP*"[i % 7]) for i, arm in enumerate(every)}
    for own, (when, meaning) in zip(axes, WHEN.items(), strict=True):
        for ax, measure in zip(own, shown, strict=True):
            if (measure, when) in panels:
                _panel(ax, panels[measure, when], styles)
                ax.set_xlabel(f"fold change of\n{LABELS[measure]}", fontsize=8)
            else:
                ax.set_visible(False)
        own[0].set_ylabel(f"{meaning}\nrelative gain (%)", fontsize=8)
    entries = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=arm.replace("_", " "))
        for arm, (color, marker) in styles.items()
    ]
    entries.append(Line2D([], [], color="black", label="least-squares line, all arms"))
    drawn.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return drawn


def _panel(ax: Axes, found: Sequence[Point], styles: dict[str, tuple[str, str]]) -> None:
    for arm, (color, marker) in styles.items():
        own = [(point.fold, point.gain) for point in found if point.arm == arm]
        if own:
            xs, ys = zip(*own, strict=True)
            ax.plot(xs, ys, marker, color=color, markersize=4, alpha=0.8, markeredgewidth=0)
    if line := fitted(found):
        ends = np.array([min(p.fold for p in found), max(p.fold for p in found)])
        ax.plot(ends, line.intercept + line.slope * ends, color="black", linewidth=1)
        ax.set_title(f"R² = {line.r2:.2f} [{line.low:.2f}, {line.high:.2f}]", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
