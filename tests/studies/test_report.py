"""The table and the figure say what the rows say."""

from __future__ import annotations

from pathlib import Path

from fpe_lightning.studies.report import figure, markdown_table, write_report
from fpe_lightning.studies.results import Row

LEVELS = {"dense": 0.80, "random": 0.90, "wide_sparse": 0.85}
ROWS = [
    Row(arm, seed, "done", "", 209, 0.99, level - 0.01, level + 0.01 * seed, 1.0, setting)
    for setting in "AB"
    for arm, level in LEVELS.items()
    for seed in range(3)
]
FAILED = Row("random", 3, "failed", "it has diverged", 209, float("nan"), float("nan"), float("nan"), 1.0, "A")


def test_the_table_holds_means_differences_and_relative_gains() -> None:
    lines = markdown_table([*ROWS, FAILED]).splitlines()
    line = next(line for line in lines if line.startswith("| random"))
    assert line == (
        "| random | 209 | 89.0 ± 0.0 | 91.0 ± 0.6 | +10.0 [+10.0, +10.0], +12.3 % | +5.0 [+5.0, +5.0], +5.8 % | 3 |"
    )
    assert "Failed: random, seed 3: it has diverged" in lines


def test_the_figure_has_a_panel_a_setting_with_labels_and_all_arms() -> None:
    drawn = figure(ROWS)
    assert [ax.get_title() for ax in drawn.axes] == ["setting A", "setting B"]
    assert all(ax.get_xlabel() == "test accuracy (%)" for ax in drawn.axes)
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["dense", "random", "wide sparse"]


def test_the_same_rows_make_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (write_report(ROWS, tmp_path / name, "Study") for name in ("one", "two"))
    assert [path.name for path in first] == ["table.md", "figure.png", "figure.svg"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_an_arm_that_failed_everywhere_leaves_an_empty_row() -> None:
    rows = [*ROWS[:3], FAILED]
    assert "| random | - | - | - | - | - | 0 |" in markdown_table(rows)
    assert len(figure(rows).axes) == 1
