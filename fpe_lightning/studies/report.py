"""The table and the figure of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fpe_lightning.studies.arms import ARMS, BASELINES
from fpe_lightning.studies.results import Row
from fpe_lightning.studies.statistics import Estimate, estimate, paired

MARKERS = {"dense": "s", "split": "o", "wide": "^"}
"""Kinds of arms are told apart by shape, so that the figure reads in grey."""
LABELS = {"dense": "dense", "split": "split (FPE)", "wide": "wide and sparse from scratch"}

STYLES: dict[str, Literal[":", "--"]] = dict(zip(BASELINES, (":", "--"), strict=True))
"""Lines of the baselines."""


def _by_seed(rows: Sequence[Row], setting: str, arm: str, part: str = "test") -> dict[int, float]:
    """Accuracies in percent of the runs that did not fail."""
    return {
        row.seed: 100 * getattr(row, part)
        for row in rows
        if row.setting == setting and row.arm == arm and row.status == "done"
    }


def _names(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(getattr(row, key) for row in rows))


def markdown_table(rows: Sequence[Row]) -> str:
    """Accuracy of every arm, and its paired differences to the baselines, as Markdown.

    Args:
        rows: Runs of one study.

    Returns:
        One table for each setting. Differences are in percentage points, with 95 % intervals over seeds, and relative
        to the baseline's mean.

    Example:
        >>> rows = [Row("dense", s, "done", "", 209, 1, 0.8, 0.8, 1, "A") for s in range(2)]
        >>> print(markdown_table(rows).splitlines()[4])
        | dense | 209 | 80.0 ± 0.0 | 80.0 ± 0.0 | - | - | 2 |
    """
    parts: list[str] = []
    for setting in _names(rows, "setting"):
        of_setting = [row for row in rows if row.setting == setting]
        parts += [
            f"### Setting {setting}: accuracy in %, mean ± standard error over seeds\n",
            "| arm | non-zeros | validation | test | minus dense (test) | minus wide_sparse (test) | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for arm in _names(of_setting, "arm"):
            counts = sorted({row.nonzeros for row in of_setting if row.arm == arm and row.status == "done"})
            test = estimate(_by_seed(rows, setting, arm))
            cells = [
                arm,
                "/".join(map(str, counts)) or "-",
                _plus_minus(estimate(_by_seed(rows, setting, arm, "val"))),
                _plus_minus(test),
                *(_difference(rows, setting, arm, baseline) for baseline in BASELINES),
                str(test.count),
            ]
            parts.append(f"| {' | '.join(cells)} |")
        failed = [row for row in of_setting if row.status == "failed"]
        parts += [f"\nFailed: {row.arm}, seed {row.seed}: {row.why}" for row in failed]
        parts.append("")
    return "\n".join(parts)


def _plus_minus(found: Estimate) -> str:
    return f"{found.mean:.1f} ± {found.error:.1f}" if found.count else "-"


def _difference(rows: Sequence[Row], setting: str, arm: str, baseline: str) -> str:
    base = _by_seed(rows, setting, baseline)
    found = paired(_by_seed(rows, setting, arm), base)
    if arm == baseline or found.count < 2:
        return "-"
    relative = 100 * found.mean / estimate(base).mean
    return f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}], {relative:+.1f} %"


def figure(rows: Sequence[Row]) -> Figure:
    """Draw test accuracy of every arm: each seed as a faint mark, the mean with its 95 % interval beside it.

    Args:
        rows: Runs of one study.

    Returns:
        A figure with one panel a setting; dashed lines are the means of the baselines.
    """
    settings, arms = _names(rows, "setting"), _names(rows, "arm")
    size = (3.4 * len(settings) + 2.4, 0.36 * len(arms) + 1.9)
    drawn = Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for ax, setting in zip(axes, settings, strict=True):
        for baseline, style in STYLES.items():
            if values := _by_seed(rows, setting, baseline):
                ax.axvline(estimate(values).mean, color="0.45", linestyle=style, linewidth=1)
        for y, arm in enumerate(arms):
            values = _by_seed(rows, setting, arm)
            if not values:
                continue
            marker, found = MARKERS[ARMS[arm].kind], estimate(values)
            # Marks of equal accuracy would hide each other; a fixed spread tells them apart.
            spread = y + 0.15 + 0.2 * np.linspace(0, 1, len(values))
            ax.plot(list(values.values()), spread, marker, color="0.6", markersize=2.5, alpha=0.7, zorder=1)
            reach = [[found.mean - found.low], [found.high - found.mean]] if found.count > 1 else None
            ax.errorbar(found.mean, y - 0.08, xerr=reach, fmt=marker, color="black", markersize=5, capsize=3, zorder=2)
        ax.set_title(f"setting {setting}")
        ax.set_xlabel("test accuracy (%)")
        ax.grid(axis="x", color="0.92")
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
    axes[0].invert_yaxis()
    kinds = dict.fromkeys(ARMS[arm].kind for arm in arms)
    entries = [Line2D([], [], color="black", marker=MARKERS[kind], linestyle="", label=LABELS[kind]) for kind in kinds]
    entries += [
        Line2D([], [], color="0.45", linestyle=style, label=f"mean of {name.replace('_', ' ')}")
        for name, style in STYLES.items()
        if name in arms
    ]
    entries.append(Line2D([], [], color="0.6", marker=".", linestyle="", label="one seed"))
    drawn.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawn


def write_report(rows: Sequence[Row], folder: Path, title: str) -> list[Path]:
    """Write ``table.md``, ``figure.png`` and ``figure.svg`` into a study's folder and return their paths."""
    table, png, svg = folder / "table.md", folder / "figure.png", folder / "figure.svg"
    note = (
        "Mean ± standard error over seeds; differences are paired by seed, in percentage points with 95 % intervals "
        "(Student's t), then relative to the baseline's mean. Non-zeros count weights and biases.\n"
    )
    table.write_text(f"# {title}\n\n{note}\n{markdown_table(rows)}")
    drawn = figure(rows)
    drawn.suptitle(f"{title}: mean and 95 % interval over seeds")
    # A fixed salt and no date make the same file from the same rows.
    with matplotlib.rc_context({"svg.hashsalt": "fpe_lightning"}):
        drawn.savefig(png, dpi=150)
        drawn.savefig(svg, metadata={"Date": None})
    return [table, png, svg]
