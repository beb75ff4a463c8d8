"""The report of the study of robustness: accuracy and calibration where test pictures or training samples are worse."""

from __future__ import annotations

from matplotlib.figure import Figure

from studies.figures import curve, dress, legend, panels
from studies.figures_of_grids import few
from studies.findings import Findings
from studies.overview import by_number, values_of
from studies.runs import Runs
from studies.statistics import estimate
from studies.tables import Table, differences, plus_minus

CLEAN = "clean"
"""The chosen test pictures as they are."""
ERROR = "calibration error "
"""Begins the name of a measure of calibration."""
UNITS = {
    "noise": "noise (standard deviation,\nshare of the full range)",
    "blur": "blur (standard deviation,\npixels)",
    "shift": "shift (pixels)",
    "label_noise": "share of training labels\nthat are wrong",
    "train_size": "training samples",
}
"""Labels of the axes."""
CAPTION = "accuracy and calibration error, means with 95 % intervals"
NOTES = (
    "Corrupted pictures are some of the test pictures, corrupted before they are encoded; `clean` are the same as they "
    "are, and `test` are all. Calibration errors are expected ones in percent, 15 bins; less is better.",
)


def findings(runs: Runs) -> Findings:
    """Tables for each setting, and the figure."""
    settings = runs.setting_names
    tables = [table for setting in settings for table in conditions(runs.of(setting), setting)]
    if len(settings) > 1 and runs.measured():
        title = "Expected calibration error in % on the clean pictures, mean ± standard error over seeds"
        errors = [
            (setting, *(plus_minus(estimate(runs.percent(setting, label, ERROR + CLEAN))) for label in runs.labels))
            for setting in settings
        ]
        tables.insert(0, Table(title, ("setting", *runs.labels), errors))
    figure = curves(runs)
    drawn = {} if figure is None else {"robustness": figure}
    return Findings(NOTES, tables, drawn, {"robustness": CAPTION})


def conditions_of(runs: Runs) -> list[str]:
    """Names of the conditions that rows have, ``"clean"`` first."""
    return [name for name in runs.measured() if not name.startswith(ERROR)]


def conditions(runs: Runs, setting: str) -> list[Table]:
    """Accuracies and calibration errors of one setting, a line for each arm; then its differences to each baseline."""
    tables = []
    for prefix, name in (("", "accuracy in %"), (ERROR, "expected calibration error in %")):
        columns = {condition: (setting, prefix + condition) for condition in conditions_of(runs)}
        lines = [
            (
                runs.shown(label),
                *(plus_minus(estimate(runs.percent(setting, label, part))) for _, part in columns.values()),
            )
            for label in runs.labels
        ]
        title = f"Setting {setting}: {name} on test pictures, mean ± standard error"
        tables += [Table(title, ("arm", *columns), lines), *differences(runs, columns, f"Setting {setting}: {name}")]
    return tables


def curves(runs: Runs) -> Figure | None:
    """Draw accuracy, and below it calibration, against everything that gets worse.

    Corruptions are those of the first setting. A number of a grid is drawn where it takes two values or more, on the
    clean pictures; where several values of another number go with it, at the one with the most.

    Returns:
        A column for each; None where nothing was measured. Of many arms those that spend more non-zeros than the
        others are left out.
    """
    settings, found = runs.setting_names, conditions_of(runs)
    if not found:
        return None
    columns: dict[str, dict[float, tuple[str, str]]] = {}  # kind -> level -> setting and condition
    for name in found:
        kind, _, level = name.partition("=")
        if level:
            columns.setdefault(kind, {0.0: (settings[0], CLEAN)})[float(level)] = (settings[0], name)
    for key in dict.fromkeys(key for setting in settings for key in values_of(setting)[1]):
        longest = max(by_number(settings, key).values(), key=len)
        columns[key] = {value: (setting, CLEAN) for value, setting in longest.items()}
    columns = {kind: levels for kind, levels in columns.items() if len(levels) > 1}
    if not columns:
        return None
    count = len(columns)
    drawn, axes = panels(2 * count, count, (2.5 * count + 0.6, 5.8), sharex="col", sharey="row")
    labels = few(runs, runs.labels)
    for number, ax in enumerate(axes):
        kind, prefix = list(columns)[number % count], ERROR if number >= count else ""
        levels = sorted(columns[kind].items())
        for style, label in enumerate(labels):
            at = {level: runs.percent(setting, label, prefix + name) for level, (setting, name) in levels}
            curve(ax, at, label, style)
        dress(ax, x=UNITS.get(kind, kind.replace("_", " ")) if prefix else "")
    axes[0].set_ylabel("test accuracy (%)")
    axes[count].set_ylabel("calibration error (%)")
    legend(drawn)
    return drawn
