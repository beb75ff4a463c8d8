"""The table and the figure that say how single-minded neurons are, arm by arm and moment by moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fpe_lightning.studies.statistics import Estimate, estimate, paired
from fpe_lightning.studies.tables import Table, as_markdown

MOMENTS = {"before": "parents before the split", "born": "children just after it", "end": "at the end"}
MARKERS = {"before": "s", "born": "v", "end": "o"}


@dataclass(frozen=True)
class Neurons:
    """The hidden neurons of one network at one moment.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the run.
        moment: One of :data:`MOMENTS`.
        neurons: How many there are.
        silent: How many of them are active on no sample.
        entropy: Mean entropy of the others over the classes, in bits; NaN where all are silent.
        selectivity: Their mean class selectivity.
        accuracy: Of the network, in [0, 1].
    """

    arm: str
    seed: int
    moment: str
    neurons: int
    silent: int
    entropy: float
    selectivity: float
    accuracy: float


def by_seed(rows: Sequence[Neurons], arm: str, moment: str, value: str) -> dict[int, float]:
    """A value of an arm at a moment, seed by seed; networks whose neurons are all silent have none.

    Example:
        >>> by_seed([Neurons("dense", 3, "end", 8, 0, 5.0, 0.5, 0.9)], "dense", "end", "entropy")
        {3: 5.0}
    """
    found = {row.seed: float(getattr(row, value)) for row in rows if (row.arm, row.moment) == (arm, moment)}
    return {seed: each for seed, each in found.items() if not math.isnan(each)}


def table(rows: Sequence[Neurons], classes: int) -> str:
    """The table as Markdown: a line for each arm and moment.

    Args:
        rows: All networks at all moments.
        classes: Number of classes, whose logarithm is the largest entropy there can be.
    """
    header = (
        "arm",
        "neurons",
        "test accuracy (%)",
        "entropy (bits)",
        "minus own parents",
        "minus dense at the end",
        "selectivity",
        "silent (%)",
        "seeds",
    )
    dense = by_seed(rows, "dense", "end", "entropy")
    lines: list[tuple[str, ...]] = []
    for arm, moment in lines_of(rows):
        own = [row for row in rows if (row.arm, row.moment) == (arm, moment)]
        entropy = by_seed(rows, arm, moment, "entropy")
        before = by_seed(rows, arm, "before", "entropy") if moment != "before" else {}
        accuracy = {row.seed: 100 * row.accuracy for row in own}
        lines.append(
            (
                f"{arm}, {MOMENTS[moment]}",
                "/".join(map(str, sorted({row.neurons for row in own}))),
                _plus_minus(estimate(accuracy), 1),
                _plus_minus(estimate(entropy), 2),
                _interval(paired(entropy, before)),
                _interval(paired(entropy, dense if (arm, moment) != ("dense", "end") else {})),
                _plus_minus(estimate(by_seed(rows, arm, moment, "selectivity")), 3),
                f"{100 * sum(row.silent for row in own) / sum(row.neurons for row in own):.1f}",
                str(len(own)),
            )
        )
    most = math.log2(classes)
    title = f"Entropy over {classes} classes, at most {most:.2f} bits: mean ± standard error over seeds"
    return as_markdown([Table(title, header, lines, [])])


def entropy_figure(rows: Sequence[Neurons], classes: int) -> Figure:
    """Draw the mean entropy of every arm at every moment: each seed as a faint mark, the mean with its 95 % interval.

    Args:
        rows: All networks at all moments.
        classes: Number of classes.

    Returns:
        A figure with one panel; moments are told apart by shape.
    """
    lines = lines_of(rows)
    figure = Figure(figsize=(7.2, 0.42 * len(lines) + 1.5), layout="constrained")
    ax = figure.add_subplot()
    for y, (arm, moment) in enumerate(lines):
        values = by_seed(rows, arm, moment, "entropy")
        if not values:
            continue
        found, marker = estimate(values), MARKERS[moment]
        ax.plot(list(values.values()), [y + 0.22] * len(values), marker, color="0.6", markersize=3, zorder=1)
        reach = [[found.mean - found.low], [found.high - found.mean]] if found.count > 1 else None
        ax.errorbar(found.mean, y - 0.08, xerr=reach, fmt=marker, color="black", markersize=5, capsize=3, zorder=2)
    ax.set_yticks(range(len(lines)), [f"{arm.replace('_', ' ')}, {MOMENTS[moment]}" for arm, moment in lines])
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.set_xlabel(f"mean entropy (bits, at most {math.log2(classes):.2f})")
    ax.set_title(f"Neurons over {classes} classes: lower is more single-minded", fontsize=10)
    entries = [
        Line2D([], [], color="0.6", marker=".", linestyle="", label="one seed"),
        Line2D([], [], color="black", marker="o", label="mean and 95 % interval over seeds"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    return figure


def lines_of(rows: Sequence[Neurons]) -> list[tuple[str, str]]:
    """Arms and moments that occur, arms in the order of the rows and moments in that of a run.

    Parents that several arms have in common stand once, with the first of these arms.
    """
    lines: list[tuple[str, str]] = []
    seen: list[dict[int, float]] = []
    for arm in dict.fromkeys(row.arm for row in rows):
        for moment in MOMENTS:
            values = by_seed(rows, arm, moment, "entropy")
            if not any((row.arm, row.moment) == (arm, moment) for row in rows) or (
                moment == "before" and values in seen
            ):
                continue
            seen += [values] if moment == "before" else []
            lines.append((arm, moment))
    return lines


def _plus_minus(found: Estimate, digits: int) -> str:
    return f"{found.mean:.{digits}f} ± {found.error:.{digits}f}" if found.count else "-"


def _interval(found: Estimate) -> str:
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]" if found.count > 1 else "-"
