"""The report of the study of interference: measures, their fold changes, and fits of the gain on each of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studies.figures import COLORS, dress, entry, legend, panels, words
from studies.findings import Findings
from studies.fits import Fit, fit
from studies.runs import Runs
from studies.statistics import estimate
from studies.tables import Table

LABELS = {
    "capacity": "feature capacity",
    "cosine": "mean cosine similarity",
    "absolute_cosine": "mean absolute cosine similarity",
    "collisions": "clause collisions",
    "coverage": "clause coverage",
}
"""Measures by the name of their columns, in the order of the tables."""
OF_CLAUSES = ("collisions", "coverage")
"""Measures that are 1 for every dense layer."""
WHEN = {"split": "just after / just before the split", "end": "split network / dense one, at the end"}
"""The two kinds of fold changes."""
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
        arm: Label of the arm.
        fold: Fold change of a measure.
        gain: Relative gain in test accuracy, in percent.
    """

    setting: str
    arm: str
    fold: float
    gain: float


def fold(runs: Runs, setting: str, arm: str, measure: str, when: str) -> float | None:
    """The fold change of a measure in a setting.

    Args:
        runs: Runs of a study.
        setting: Name of the setting.
        arm: Label of an arm that splits.
        measure: A key of :data:`LABELS`.
        when: A key of :data:`WHEN`.

    Returns:
        A ratio of means over seeds; None where a mean is missing, or the denominator is zero.
    """
    above = measured(runs, setting, arm, f"{measure}_{'after' if when == 'split' else 'end'}")
    below = measured(runs, setting, *((arm, f"{measure}_before") if when == "split" else ("dense", f"{measure}_end")))
    if when == "split" and below is None and measure in OF_CLAUSES:
        below = 1.0
    return above / below if above is not None and below else None


def measured(runs: Runs, setting: str, arm: str, column: str) -> float | None:
    """The mean of a measure over seeds; None where a seed has none, as a layer of dead neurons has no cosines."""
    mean = estimate(runs.values(setting, arm, column)).mean
    return None if math.isnan(mean) else mean


def accuracies(runs: Runs, setting: str, arm: str) -> tuple[float, float] | None:
    """Mean test accuracy of the dense network and of an arm, in percent, over the seeds that both have."""
    dense, own = runs.percent(setting, "dense"), runs.percent(setting, arm)
    both = own.keys() & dense.keys()
    if not both:
        return None
    return estimate({seed: dense[seed] for seed in both}).mean, estimate({seed: own[seed] for seed in both}).mean


def gain(runs: Runs, setting: str, arm: str) -> float | None:
    """Mean test accuracy over that of the dense network, minus one, in percent."""
    dense, own = accuracies(runs, setting, arm) or (0.0, 0.0)
    return 100 * (own / dense - 1) if dense else None


def points(runs: Runs, measure: str, when: str) -> list[Point]:
    """Every arm that splits in every setting, where both numbers are known."""
    found = []
    for setting in runs.setting_names:
        for arm in runs.splits:
            x, y = fold(runs, setting, arm, measure, when), gain(runs, setting, arm)
            if x is not None and y is not None:
                found.append(Point(setting, arm, x, y))
    return found


def findings(runs: Runs) -> Findings:
    """One table of all fits, then tables of fits and of measures and a figure for each name that a grid began with."""
    settings: dict[str, list[str]] = {}
    for setting in runs.setting_names:
        settings.setdefault(base_of(setting), []).append(setting)
    bases = {base: runs.of(*own) for base, own in settings.items()}
    fits = [fits_table(base, own) for base, own in bases.items()]
    measures = [measures_table(base, own) for base, own in bases.items()]
    drawn = {base: figure for base, own in bases.items() if (figure := scatter(own)) is not None}
    names = {base: f"interference_{re.sub(r'[^a-zA-Z0-9]+', '_', base)}" for base in drawn}
    captions = {name: f"{base}, relative gain against fold changes" for base, name in names.items()}
    figures = {names[base]: figure for base, figure in drawn.items()}
    return Findings(NOTES, [summary_table(bases), *fits, *measures], figures, captions)


def base_of(setting: str) -> str:
    """The name that a grid began with.

    Example:
        >>> base_of("two layers hidden=[8, 8] alpha=2")
        'two layers'
    """
    return re.split(r" \w+=", setting, maxsplit=1)[0]


def summary_table(bases: Mapping[str, Runs]) -> Table:
    """One line for each name that a grid began with: how much each measure of the weights explains."""
    shown = [(measure, when) for measure in LABELS if measure not in OF_CLAUSES for when in WHEN]
    header = ("study", "points", *(f"{LABELS[measure]}, {SHORT[when]}" for measure, when in shown))
    lines = []
    for base, runs in bases.items():
        found = [points(runs, measure, when) for measure, when in shown]
        counts = sorted({len(each) for each in found if each})
        count = " to ".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]])))
        lines.append((base, count or "-", *(_r2(fitted(each), directed=True) for each in found)))
    return Table("R^2 [95 %] of the relative gain on each fold change, and which way the line goes", header, lines)


def fitted(found: Sequence[Point]) -> Fit | None:
    """The line through points, which are clustered by setting."""
    return fit([p.fold for p in found], [p.gain for p in found], [p.setting for p in found])


def fits_table(base: str, runs: Runs) -> Table:
    """One line for each measure and kind of fold change, over all arms and for each alone."""
    plain = ("measure", "fold change", "points", "slope", "R^2 [95 %]", "rank correlation")
    lines = []
    for measure, label in LABELS.items():
        for when, meaning in WHEN.items():
            if found := points(runs, measure, when):
                line = fitted(found)
                slope, rank = ("-", "-") if line is None else (f"{line.slope:+.3g}", f"{line.rank:+.2f}")
                alone = [_r2(fitted([point for point in found if point.arm == arm])) for arm in runs.splits]
                lines.append((label, meaning, str(len(found)), slope, _r2(line), rank, *alone))
    title = f"{base}: relative gain in % fitted on fold changes, all arms that split and each alone"
    return Table(title, (*plain, *(f"R^2, {arm}" for arm in runs.splits)), lines)


def _r2(line: Fit | None, directed: bool = False) -> str:
    if line is None:
        return "-"
    way = (" rising" if line.slope > 0 else " falling") if directed else ""
    return f"{line.r2:.2f} [{line.low:.2f}, {line.high:.2f}]{way}"


def measures_table(base: str, runs: Runs) -> Table:
    """One line for each setting and arm that splits: every measure around the split, and at the end against dense."""
    shown = [measure for measure in LABELS if f"{measure}_after" in runs.measured()]
    header = ("setting", "arm", "test accuracy in %, dense -> split network (gain)", *(LABELS[m] for m in shown))
    lines = [
        (setting, arm, _accuracies(runs, setting, arm), *(_cell(runs, setting, arm, measure) for measure in shown))
        for setting in runs.setting_names
        for arm in runs.splits
    ]
    title = f"{base}: measures before -> after the split (fold change); dense -> split network at the end (fold change)"
    return Table(title, header, lines)


def _accuracies(runs: Runs, setting: str, arm: str) -> str:
    """Mean accuracies, as ``73.5 -> 79.5 (+8.2 %)``."""
    means, won = accuracies(runs, setting, arm), gain(runs, setting, arm)
    return "-" if means is None or won is None else f"{means[0]:.1f} -> {means[1]:.1f} ({won:+.1f} %)"


def _cell(runs: Runs, setting: str, arm: str, measure: str) -> str:
    """Both pairs of a measure, as ``0.21 -> 0.43 (2.0); 0.20 -> 0.40 (2.0)``."""

    def mean(of: str, moment: str) -> str:
        found = measured(runs, setting, of, f"{measure}_{moment}")
        return "-" if found is None else f"{found:.3f}"

    if measure in OF_CLAUSES:
        return f"1 -> {mean(arm, 'after')}"
    ratios = [fold(runs, setting, arm, measure, when) for when in WHEN]
    said = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    around = f"{mean(arm, 'before')} -> {mean(arm, 'after')} ({said[0]})"
    return f"{around}; {mean('dense', 'end')} -> {mean(arm, 'end')} ({said[1]})"


def scatter(runs: Runs) -> Figure | None:
    """Draw gains against fold changes with the fitted lines: a row for each kind of fold change.

    Returns:
        A panel for each measure; None where nothing was measured.
    """
    found = {(measure, when): points(runs, measure, when) for when in WHEN for measure in LABELS}
    shown = [measure for measure in LABELS if any(found[measure, when] for when in WHEN)]
    if not shown:
        return None
    arms = dict.fromkeys(point.arm for own in found.values() for point in own)
    styles = {arm: (COLORS[1 + i % (len(COLORS) - 1)], "o^sDvP*"[i % 7]) for i, arm in enumerate(arms)}
    across = len(shown)
    drawn, axes = panels(across * len(WHEN), across, (2.7 * across + 0.4, 2.5 * len(WHEN) + 0.9), sharey=True)
    for number, ax in enumerate(axes):
        measure, when = shown[number % across], list(WHEN)[number // across]
        own = found[measure, when]
        ax.set_visible(bool(own))
        for arm, (color, marker) in styles.items():
            xs, ys = [p.fold for p in own if p.arm == arm], [p.gain for p in own if p.arm == arm]
            ax.plot(xs, ys, marker, color=color, markersize=4, alpha=0.8, markeredgewidth=0)
        line = fitted(own)
        if line is not None:
            ends = np.array([min(p.fold for p in own), max(p.fold for p in own)])
            ax.plot(ends, line.intercept + line.slope * ends, color="black", linewidth=1)
        y = "" if number % across else f"{WHEN[when]}\nrelative gain (%)"
        dress(ax, "" if line is None else f"R² = {_r2(line)}", f"fold change of\n{LABELS[measure]}", y)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    entries = [entry(words(a), color=color, marker=mark, linestyle="") for a, (color, mark) in styles.items()]
    legend(drawn, [*entries, entry("least-squares line, all arms", color="black")])
    return drawn
