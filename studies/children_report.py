"""The tables and the figure of the study of children: over how many classes neurons spread, arm by arm."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from studies.figures import dress, entry, legend, marks, panels, words
from studies.runs import Runs
from studies.statistics import estimate, paired
from studies.tables import Table, interval, plus_minus

MOMENTS = {"before": "parents before the split", "after": "children just after it", "end": "at the end"}
MARKERS = {"before": "s", "after": "v", "end": "o"}
VALUES = ("neurons", "silent", "entropy", "selectivity", "excess", "raw_excess", "accuracy")
"""Measures at each moment: numbers of neurons and of those that are active on no sample; means over the others of their
entropy over the classes in bits, their class selectivity and their excess entropy, which is free of offsets; the last
one over all neurons before their ReLU; and the accuracy of the network.
"""


def tables(runs: Runs, setting: str, classes: int) -> list[Table]:
    """Two tables, a line for each arm and moment: entropies as they are, and free of offsets.

    Args:
        runs: Runs of one setting.
        setting: Its name.
        classes: Number of classes, whose logarithm is the largest entropy there can be.
    """
    against = ("minus own parents", "minus dense at the end")
    plain, free = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for label, moment in lines_of(runs, setting):
        name = f"{label}, {MOMENTS[moment]}"
        neurons = runs.values(setting, label, f"neurons_{moment}")
        silent = runs.values(setting, label, f"silent_{moment}")
        plain.append(
            (
                name,
                "/".join(f"{each:.0f}" for each in sorted(set(neurons.values()))),
                plus_minus(estimate(runs.percent(setting, label, f"accuracy_{moment}"))),
                *_compared(runs, setting, label, moment, "entropy"),
                plus_minus(estimate(known(runs, setting, label, f"selectivity_{moment}")), 3),
                f"{100 * sum(silent.values()) / sum(neurons.values()):.1f}",
                str(len(neurons)),
            )
        )
        excess = (_compared(runs, setting, label, moment, value) for value in ("excess", "raw_excess"))
        free.append((name, *(cell for cells in excess for cell in cells)))
    header = ("arm", "neurons", "test accuracy (%)", "entropy (bits)", *against, "selectivity", "silent (%)", "seeds")
    error = "mean ± standard error over seeds"
    most, above = math.log2(classes), math.log2(classes // 2)
    return [
        Table(f"Setting {setting}: entropy over {classes} classes, at most {most:.2f} bits: {error}", header, plain),
        Table(
            f"Setting {setting}: entropy above the median class, free of offsets, at most {above:.2f} bits: {error}",
            ("arm", "after the ReLU (bits)", *against, "before the ReLU (bits)", *against),
            free,
        ),
    ]


def known(runs: Runs, setting: str, label: str, measure: str) -> dict[int, float]:
    """A measure by seed; networks whose neurons are all silent have none."""
    return {seed: each for seed, each in runs.values(setting, label, measure).items() if not math.isnan(each)}


def _compared(runs: Runs, setting: str, label: str, moment: str, value: str) -> tuple[str, str, str]:
    """A value, and its differences to the own parents and to the dense network, paired by seed."""
    own = known(runs, setting, label, f"{value}_{moment}")
    parents = known(runs, setting, label, f"{value}_before") if moment != "before" else {}
    dense = known(runs, setting, "dense", f"{value}_end") if (label, moment) != ("dense", "end") else {}
    return plus_minus(estimate(own), 2), interval(paired(own, parents), 2), interval(paired(own, dense), 2)


def entropy_figure(runs: Runs, setting: str, classes: int) -> Figure:
    """Draw mean entropies of every arm at every moment: each seed as a faint mark, the mean with its 95 % interval.

    Args:
        runs: Runs of one setting.
        setting: Its name.
        classes: Number of classes.

    Returns:
        A figure with a panel for the entropy and one for the entropy free of offsets; moments are told apart by shape.
    """
    lines = lines_of(runs, setting)
    labels = {
        "entropy": f"entropy (bits, at most {math.log2(classes):.2f})",
        "raw_excess": f"above the median class (bits, at most {math.log2(classes // 2):.2f})",
    }
    drawn, axes = panels(len(labels), len(labels), (10.5, 0.42 * len(lines) + 1.7), sharey=True)
    for ax, (value, x) in zip(axes, labels.items(), strict=True):
        for y, (label, moment) in enumerate(lines):
            values = known(runs, setting, label, f"{value}_{moment}")
            marks(ax, y, values, MARKERS[moment], (0, math.inf))
        dress(ax, x=x, grid="x")
    axes[0].set_yticks(range(len(lines)), [f"{words(label)}, {MOMENTS[moment]}" for label, moment in lines])
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    entries = [entry(label, color="black", marker=MARKERS[moment], linestyle="") for moment, label in MOMENTS.items()]
    one = entry("one seed", color="0.6", marker=".", linestyle="")
    legend(drawn, [*entries, one, entry("95 % interval over seeds", color="black")], 3)
    return drawn


def lines_of(runs: Runs, setting: str) -> list[tuple[str, str]]:
    """Labels and moments that occur, arms in the order of the rows and moments in the order of a run.

    Parents that several arms share are listed once, with the first of these arms.
    """
    lines: list[tuple[str, str]] = []
    seen: list[dict[int, float]] = []
    for label in runs.labels:
        for moment in MOMENTS:
            values = known(runs, setting, label, f"entropy_{moment}")
            if not runs.values(setting, label, f"neurons_{moment}") or (moment == "before" and values in seen):
                continue
            seen += [values] if moment == "before" else []
            lines.append((label, moment))
    return lines
