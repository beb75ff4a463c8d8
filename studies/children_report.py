"""The table and the figure that say how single-minded neurons are, arm by arm and moment by moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studies.statistics import Estimate, estimate, paired
from studies.tables import Table, as_markdown

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
        excess: Mean of :func:`~fpe_lightning.interference.selectivity.excess_entropy`, free of offsets.
        raw_excess: The same of all neurons before their ReLU, where a bias is nothing but an offset.
        accuracy: Of the network, in [0, 1].
    """

    arm: str
    seed: int
    moment: str
    neurons: int
    silent: int
    entropy: float
    selectivity: float
    excess: float
    raw_excess: float
    accuracy: float


def by_seed(rows: Sequence[Neurons], arm: str, moment: str, value: str) -> dict[int, float]:
    """A value of an arm at a moment, seed by seed; networks whose neurons are all silent have none.

    Example:
        >>> by_seed([Neurons("dense", 3, "end", 8, 0, 5.0, 0.5, 4.0, 4.0, 0.9)], "dense", "end", "entropy")
        {3: 5.0}
    """
    found = {row.seed: float(getattr(row, value)) for row in rows if (row.arm, row.moment) == (arm, moment)}
    return {seed: each for seed, each in found.items() if not math.isnan(each)}


def table(rows: Sequence[Neurons], classes: int) -> str:
    """Two tables as Markdown, a line for each arm and moment: entropies as they are, and free of offsets.

    Args:
        rows: All networks at all moments.
        classes: Number of classes, whose logarithm is the largest entropy there can be.
    """
    against = ("minus own parents", "minus dense at the end")
    most, above = math.log2(classes), math.log2(classes // 2)
    header = ("arm", "neurons", "test accuracy (%)", "entropy (bits)", *against, "selectivity", "silent (%)", "seeds")
    plain, free = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for arm, moment in lines_of(rows):
        own = [row for row in rows if (row.arm, row.moment) == (arm, moment)]
        name = f"{arm}, {MOMENTS[moment]}"
        accuracy = {row.seed: 100 * row.accuracy for row in own}
        plain.append(
            (
                name,
                "/".join(map(str, sorted({row.neurons for row in own}))),
                _plus_minus(estimate(accuracy), 1),
                *_compared(rows, arm, moment, "entropy"),
                _plus_minus(estimate(by_seed(rows, arm, moment, "selectivity")), 3),
                f"{100 * sum(row.silent for row in own) / sum(row.neurons for row in own):.1f}",
                str(len(own)),
            )
        )
        free.append((name, *_compared(rows, arm, moment, "excess"), *_compared(rows, arm, moment, "raw_excess")))
    error = "mean ± standard error over seeds"
    return as_markdown(
        [
            Table(f"Entropy over {classes} classes, at most {most:.2f} bits: {error}", header, plain, []),
            Table(
                f"Entropy of what lies above the median class, free of offsets, at most {above:.2f} bits: {error}",
                ("arm", "after the ReLU (bits)", *against, "before the ReLU (bits)", *against),
                free,
                [],
            ),
        ]
    )


def _compared(rows: Sequence[Neurons], arm: str, moment: str, value: str) -> tuple[str, str, str]:
    """A value, and its differences to the own parents and to the dense network, paired by seed."""
    own = by_seed(rows, arm, moment, value)
    parents = by_seed(rows, arm, "before", value) if moment != "before" else {}
    dense = by_seed(rows, "dense", "end", value) if (arm, moment) != ("dense", "end") else {}
    return _plus_minus(estimate(own), 2), _interval(paired(own, parents)), _interval(paired(own, dense))


def entropy_figure(rows: Sequence[Neurons], classes: int) -> Figure:
    """Draw mean entropies of every arm at every moment: each seed as a faint mark, the mean with its 95 % interval.

    Args:
        rows: All networks at all moments.
        classes: Number of classes.

    Returns:
        A figure with a panel for the entropy and one for that which is free of offsets; moments are told apart by
        shape.
    """
    lines = lines_of(rows)
    panels = {
        "entropy": f"entropy (bits, at most {math.log2(classes):.2f})",
        "raw_excess": f"of what lies above the median class (bits, at most {math.log2(classes // 2):.2f})",
    }
    figure = Figure(figsize=(10.5, 0.42 * len(lines) + 1.7), layout="constrained")
    for ax, (value, label) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for y, (arm, moment) in enumerate(lines):
            values = by_seed(rows, arm, moment, value)
            if not values:
                continue
            found, marker = estimate(values), MARKERS[moment]
            ax.plot(list(values.values()), [y + 0.22] * len(values), marker, color="0.6", markersize=3, zorder=1)
            reach = [[found.mean - found.low], [found.high - found.mean]] if found.count > 1 else None
            ax.errorbar(found.mean, y - 0.08, xerr=reach, fmt=marker, color="black", markersize=5, capsize=3, zorder=2)
        ax.set_xlabel(label, fontsize=9)
        ax.grid(axis="x", color="0.92")
        ax.set_axisbelow(True)
    first = figure.axes[0]
    first.set_yticks(range(len(lines)), [f"{arm.replace('_', ' ')}, {MOMENTS[moment]}" for arm, moment in lines])
    first.set_ylim(len(lines) - 0.5, -0.5)
    figure.suptitle(f"Neurons over {classes} classes, mean over neurons: lower is more single-minded", fontsize=10)
    entries = [
        Line2D([], [], color="black", marker=MARKERS[moment], linestyle="", label=label)
        for moment, label in MOMENTS.items()
    ]
    entries += [
        Line2D([], [], color="0.6", marker=".", linestyle="", label="one seed"),
        Line2D([], [], color="black", label="95 % interval over seeds"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
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
