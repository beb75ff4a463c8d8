"""What the study of robustness reports: accuracy and calibration where test pictures or training samples are worse."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.arms import BASELINES
from studies.figures import curve
from studies.figures_of_grids import few
from studies.findings import Findings
from studies.overview import values_of
from studies.results import Row
from studies.statistics import estimate
from studies.tables import Table, by_seed, difference, names, plus_minus

CLEAN = "clean"
"""The chosen test pictures as they are."""
ERROR = "calibration error "
"""What stands before the name of a condition."""
UNITS = {
    "noise": "noise (standard deviation,\nshare of the full range)",
    "blur": "blur (standard deviation,\npixels)",
    "shift": "shift (pixels)",
    "label_noise": "share of training labels\nthat are wrong",
    "train_size": "training samples",
}
"""Labels of what gets worse."""
CAPTION = "accuracy and calibration error, means with 95 % intervals"
NOTES = (
    "Corrupted pictures are some of the test pictures, corrupted before they are encoded; `clean` are the same as they "
    "are, and `test` are all. Calibration errors are expected ones in percent, 15 bins; less is better.",
)


def findings(rows: Sequence[Row]) -> Findings:
    """Tables for each setting, and the figure."""
    own = {setting: [row for row in rows if row.setting == setting] for setting in names(rows, "setting")}
    tables = [table for setting, mine in own.items() for table in conditions(mine, setting)]
    if len(own) > 1 and measured(rows):
        tables.insert(0, clean_errors(rows))
    figure = curves(rows)
    drawn = {} if figure is None else {"robustness": figure}
    return Findings(NOTES, tables, drawn, {"robustness": CAPTION})


def measured(rows: Sequence[Row]) -> list[str]:
    """Names of the conditions that rows have, ``"clean"`` first."""
    return list(dict.fromkeys(name for row in rows for name in row.measures if not name.startswith(ERROR)))


def clean_errors(rows: Sequence[Row]) -> Table:
    """Calibration errors on the clean pictures, a line for each setting."""
    arms = names(rows, "arm")
    lines = [
        (setting, *(plus_minus(estimate(by_seed(rows, setting, arm, ERROR + CLEAN))) for arm in arms))
        for setting in names(rows, "setting")
    ]
    title = "Expected calibration error in % on the clean pictures, mean ± standard error over seeds"
    return Table(title, ("setting", *arms), lines, [])


def conditions(rows: Sequence[Row], setting: str) -> list[Table]:
    """Accuracies and calibration errors of one setting, a line for each arm; then its differences to each baseline."""
    arms, found = names(rows, "arm"), measured(rows)
    tables = []
    for prefix, what in (("", "accuracy in %"), (ERROR, "expected calibration error in %")):
        levels = [
            (arm, *(plus_minus(estimate(by_seed(rows, setting, arm, prefix + c))) for c in found)) for arm in arms
        ]
        title = f"Setting {setting}: {what} on test pictures, mean ± standard error"
        tables.append(Table(title, ("arm", *found), levels, []))
        for base in BASELINES:
            others = [arm for arm in arms if arm != base] if base in arms else []
            apart = [(arm, *(difference(rows, setting, arm, base, prefix + c) for c in found)) for arm in others]
            title = f"Setting {setting}: {what} minus {base}, paired, in points [95 %], then relative"
            tables += [Table(title, ("arm", *found), apart, [])] if apart else []
    return tables


def curves(rows: Sequence[Row]) -> Figure | None:
    """Draw accuracy, and below it calibration, against everything that gets worse.

    Corruptions are those of the first setting. What a grid moves is drawn where it takes two values or more, on the
    clean pictures, and where several values of something else go with it, at the one with the most.

    Returns:
        A column for each; None where nothing was measured. Of many arms those that spend more non-zeros than the
        others are left out.
    """
    settings = names(rows, "setting")
    found = measured(rows)
    if not found:
        return None
    columns: dict[str, dict[float, tuple[str, str]]] = {}  # kind -> level -> setting and condition
    for name in found:
        kind, _, level = name.partition("=")
        if level:
            columns.setdefault(kind, {0.0: (settings[0], CLEAN)})[float(level)] = (settings[0], name)
    moved: dict[str, dict[str, dict[float, tuple[str, str]]]] = {}  # the same, by what the other values are
    for setting in settings:
        base, values = values_of(setting)
        for key, value in values.items():
            rest = " ".join([base, *(f"{other}={values[other]}" for other in values if other != key)])
            moved.setdefault(key, {}).setdefault(rest, {})[value] = (setting, CLEAN)
    columns |= {key: max(groups.values(), key=len) for key, groups in moved.items()}
    columns = {kind: levels for kind, levels in columns.items() if len(levels) > 1}
    if not columns:
        return None
    drawn = Figure(figsize=(2.5 * len(columns) + 0.6, 5.8), layout="constrained")
    axes = drawn.subplots(2, len(columns), sharex="col", sharey="row", squeeze=False)
    for column, (kind, levels) in enumerate(columns.items()):
        for ax, prefix in zip(axes[:, column], ("", ERROR), strict=True):
            _panel(ax, rows, levels, prefix)
        axes[1, column].set_xlabel(UNITS.get(kind, kind.replace("_", " ")), fontsize=9)
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("calibration error (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return drawn


def _panel(ax: Axes, rows: Sequence[Row], levels: dict[float, tuple[str, str]], prefix: str) -> None:
    for style, arm in enumerate(few(names(rows, "arm"))):
        at = {level: by_seed(rows, setting, arm, prefix + name) for level, (setting, name) in sorted(levels.items())}
        curve(ax, at, arm, style)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
