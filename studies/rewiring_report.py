"""The report of the study of rewiring: accuracy of all arms, compared with RigL, and against the cost of training."""

from __future__ import annotations

from matplotlib.figure import Figure

from studies.cost import MEASURES
from studies.figures import COLORS, dress, legend, panels, reach_of, words
from studies.findings import Findings
from studies.runs import Runs
from studies.statistics import estimate, paired
from studies.tables import Table, interval, plus_minus

RIGL = "rigl"
"""Label of the arm that others are compared with, where the study has it."""
UNITS = {
    "macs_nonzeros": "multiply-adds of training, of non-zeros",
    "macs_stored": "multiply-adds of training, as stored",
    "bytes_nonzeros": "memory of training, of non-zeros",
    "bytes_stored": "memory of training, as stored",
    "traffic_nonzeros": "gradients sent, of non-zeros",
    "traffic_stored": "gradients sent, as stored",
}
"""What each measure counts."""
NOTES = (
    "Costs are those of the whole training, as multiples of the dense network's in the same setting. `nonzeros` is for "
    "a machine that stores and multiplies non-zeros alone, `stored` for one that multiplies masked weights as dense "
    "ones.",
)


def findings(runs: Runs) -> Findings:
    """One table of all settings, one of differences to RigL, one of costs a setting, and two figures."""
    found = [accuracies(runs)]
    if RIGL in runs.labels:
        found.append(compared(runs, RIGL))
    found += [costs(runs, setting) for setting in runs.setting_names if "dense" in runs.labels]
    figures = {
        "compute": against(runs, "macs_stored"),
        "memory": against(runs, "bytes_stored"),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    captions = {"compute": "accuracy against training compute", "memory": "accuracy against training memory"}
    return Findings(NOTES, found, drawn, captions)


def accuracies(runs: Runs) -> Table:
    """Test accuracies, a line for each arm and a column for each setting."""
    lines = [
        (runs.shown(label), *(plus_minus(estimate(runs.percent(setting, label))) for setting in runs.setting_names))
        for label in runs.labels
    ]
    title = "Test accuracy in %, mean ± standard error over seeds"
    return Table(title, ("arm", *runs.setting_names), lines)


def compared(runs: Runs, baseline: str) -> Table:
    """Differences to one arm, paired by seed."""

    def cell(setting: str, label: str) -> str:
        return interval(paired(runs.percent(setting, label), runs.percent(setting, baseline)))

    lines = [
        (runs.shown(label), *(cell(setting, label) for setting in runs.setting_names))
        for label in runs.labels
        if label != baseline
    ]
    title = f"Test accuracy minus {baseline}, paired, in points [95 %]"
    return Table(title, ("arm", *runs.setting_names), lines)


def costs(runs: Runs, setting: str) -> Table:
    """What training takes, as multiples of the dense network's."""
    own = runs.of(setting)

    def cell(label: str, measure: str) -> str:
        found = relative(own, setting, label, measure)
        return "-" if found is None else f"{found:.2f}"

    lines = [(own.shown(label), *(cell(label, measure) for measure in MEASURES)) for label in own.labels]
    return Table(f"Cost of training in setting {setting}, dense = 1", ("arm", *map(words, MEASURES)), lines)


def relative(runs: Runs, setting: str, label: str, measure: str) -> float | None:
    """A cost as a multiple of the dense network's; None where a run of either is missing."""
    found, dense = (runs.values(setting, each, measure) for each in (label, "dense"))
    if not found or not dense:
        return None
    return estimate(found).mean / estimate(dense).mean


def against(runs: Runs, measure: str) -> Figure | None:
    """Draw test accuracy against a cost: a panel a setting, means with 95 % intervals.

    Args:
        runs: Runs of one study.
        measure: Name of the cost.

    Returns:
        None where no run knows its cost, or there is no dense network.
    """
    settings = [s for s in runs.setting_names if relative(runs, s, "dense", measure) is not None]
    if not settings:
        return None
    across = min(3, len(settings))
    down = -(-len(settings) // across)
    drawn, axes = panels(len(settings), across, (3.6 * across + 0.4, 2.8 * down + 1.4))
    for ax, setting in zip(axes, settings, strict=False):
        for style, label in enumerate(runs.labels):
            cost, accuracy = relative(runs, setting, label, measure), estimate(runs.percent(setting, label))
            if cost is None:
                continue
            ax.errorbar(
                [cost],
                [accuracy.mean],
                yerr=reach_of([accuracy]),
                label=words(runs.shown(label)),
                color=COLORS[style % len(COLORS)],
                marker="so^DvP*X<>phd"[style % 13],
                markersize=5,
                linestyle="",
                linewidth=1,
                capsize=2,
            )
        ax.set_xscale("log", base=2)
        dress(ax, setting, f"{UNITS[measure]} (dense = 1)", "test accuracy (%)")
    legend(drawn)
    return drawn
