"""The figures of a study that show how accuracy moves with a number, and with the epoch of the split."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from studies.arms import Arm, Split
from studies.figures import STYLES, curve, dress, entry, legend, panels, words
from studies.overview import by_number, values_of
from studies.runs import Runs
from studies.statistics import estimate

FEW = 8
"""Curves of a panel; where there are more, arms that spend more non-zeros than the others are left out."""
WIDE = 8
"""Ratio of the largest and the smallest value from which on an axis shows powers of two."""
LABELS = {
    "hidden": "neurons before the split",
    "alpha": "children of a neuron (alpha)",
    "literals": "literals of a clause",
    "split": "epoch of the split",
    "lr": "learning rate",
}
"""Labels of axes, where the name of an attribute is not clear."""
ACCURACY = "test accuracy (%)"


def curves_figure(runs: Runs) -> Figure | None:
    """Draw test accuracy against every number of a grid.

    Of arms that differ in the epoch of their split one stands for all: the one that splits at the epoch of the
    setting, or else the earliest after epoch 0. :func:`epochs_figure` shows the others.

    Args:
        runs: Runs of one study.

    Returns:
        A panel for each number and combination of the others; bars are 95 % intervals over seeds. None where no number
        takes three values.
    """
    settings = runs.setting_names
    keys = dict.fromkeys(key for setting in settings for key in values_of(setting)[1])
    chosen: list[tuple[str, str, dict[float, str]]] = []
    for key in keys:
        # A setting in a panel of one number is not drawn again with another number.
        before = {setting for _, _, panel in chosen for setting in panel.values()}
        every = by_number(settings, key).items()
        chosen += [(key, others, p) for others, p in every if len(p) > 2 and not before & set(p.values())]
    if not chosen:
        return None
    labels = few(runs, [_representative(runs, own) for own in _families(runs)])
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    drawn, axes = panels(len(chosen), across, (3.6 * across + 0.4, 2.7 * down + 1.0))
    for ax, (key, others, panel) in zip(axes, chosen, strict=False):
        values = sorted(panel)
        for style, label in enumerate(labels):
            curve(ax, {value: runs.percent(panel[value], label) for value in values}, label, style)
        if values[0] > 0 and values[-1] >= WIDE * values[0]:
            ax.set_xscale("log", base=2)
            ax.set_xticks(values, [f"{value:g}" for value in values])
            ax.xaxis.set_minor_locator(NullLocator())
        elif all(value == int(value) for value in values):
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        dress(ax, others if " " in others else f"setting {others}", LABELS.get(key, words(key)), ACCURACY)
    legend(drawn)
    return drawn


def epochs_figure(runs: Runs) -> Figure | None:
    """Draw test accuracy against the epoch of the split, where arms differ in it.

    Args:
        runs: Runs of one study.

    Returns:
        A panel for each setting in which something was split, those of a grid in rows of its first number; bars are
        95 % intervals over seeds, lines are the means of the baselines. None where there are fewer than three epochs.
    """
    moved = {label: arm.at for label, arm in runs.splits.items() if arm.at is not None}
    ran = {row.setting for row in runs.rows if row.status == "done" and row.arm in moved}
    settings = [setting for setting in runs.setting_names if setting in ran]
    if len(set(moved.values())) < 3 or not settings:
        return None
    timed = [[label for label in own if label in moved] for own in _families(runs)]
    timed = [own for own in timed if len(own) > 1]
    numbers = {setting: values_of(setting)[1] for setting in settings}
    first = {next(iter(found.items()), ("", 0.0)) for found in numbers.values()}
    across = min(3, len(settings))
    if 1 < len(first) <= 6 and len(settings) % len(first) == 0:  # a regular grid
        across = len(first)
        settings = sorted(settings, key=lambda setting: list(numbers[setting].values())[::-1])
    down = -(-len(settings) // across)
    drawn, axes = panels(len(settings), across, (2.7 * across + 0.6, 2.3 * down + 0.9))
    for ax, setting in zip(axes, settings, strict=False):
        for style, own in enumerate(timed):
            curve(ax, {float(moved[label]): runs.percent(setting, label) for label in own}, _name(own), style)
        for baseline, line in STYLES.items():
            if values := runs.percent(setting, baseline):
                ax.axhline(estimate(values).mean, color="0.45", linestyle=line, linewidth=1)
        dress(ax, setting, LABELS["split"], ACCURACY)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    found = {name: style for name, style in STYLES.items() if name in runs.labels}
    legend(drawn, [entry(f"{words(n)}, at any epoch", color="0.45", linestyle=style) for n, style in found.items()])
    return drawn


def few(runs: Runs, labels: Sequence[str]) -> list[str]:
    """The labels, or where they are many those of arms that spend no more non-zeros than the others.

    Example:
        >>> from studies.arms import Dense, Larger
        >>> runs = Runs([], {"larger": Larger(), **{str(i): Dense() for i in range(FEW)}})
        >>> few(runs, ["larger", "0"]), few(runs, list(runs.arms))[:2]
        (['larger', '0'], ['0', '1'])
    """
    return [label for label in labels if len(labels) <= FEW or not runs.arms[label].marked]


def _families(runs: Runs) -> list[list[str]]:
    """Labels of arms that differ in the epoch of their split alone."""
    found: list[tuple[Arm, list[str]]] = []
    for label in runs.labels:
        arm = runs.arms[label]
        kind = replace(arm, at=None) if isinstance(arm, Split) else arm
        own = next((own for known, own in found if known == kind), None)
        if own is None:
            found.append((kind, own := []))
        own.append(label)
    return [own for _, own in found]


def _representative(runs: Runs, family: list[str]) -> str:
    """The arm that splits at the epoch of the setting, or else the earliest after epoch 0; of other arms the first."""
    epochs = {label: arm.at for label in family if isinstance(arm := runs.arms[label], Split)}
    return next((label for label, at in epochs.items() if at is None or at > 0), family[0])


def _name(family: Sequence[str]) -> str:
    """The common part of labels such as ``random_at_2`` and ``random_at_10``."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*family, strict=False))
    return "".join(letters[0] for letters in same).rstrip("_0123456789").removesuffix("_at") or family[0]
