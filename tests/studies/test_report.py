"""The table and the figure say what the rows say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from studies.figures import arms_figure
from studies.figures_of_grids import curves_figure, epochs_figure
from studies.overview import overview
from studies.report import write_report
from studies.results import Row
from studies.runs import Runs
from studies.tables import as_markdown, tables
from tests.support.arms import ARMS

LEVELS = {"dense": 0.80, "random": 0.90, "wide_sparse": 0.85}
ROWS = [
    Row(arm, seed, "done", "", 209, 0.99, level - 0.01, level + 0.01 * seed, 1.0, setting)
    for setting in "AB"
    for arm, level in LEVELS.items()
    for seed in range(3)
]


def runs(rows: Sequence[Row]) -> Runs:
    return Runs(rows, ARMS)


FAILED = Row("random", 3, "failed", "it has diverged", 209, float("nan"), float("nan"), float("nan"), 1.0, "A")


def test_the_table_holds_means_differences_and_relative_gains() -> None:
    lines = as_markdown(tables(runs([*ROWS, FAILED]))).splitlines()
    line = next(line for line in lines if line.startswith("| random"))
    assert line == (
        "| random | 209 | 89.0 ± 0.0 | 91.0 ± 0.6 | +10.0 [+10.0, +10.0], +12.3 % | +5.0 [+5.0, +5.0], +5.8 % | 3 |"
    )
    assert "Failed: random, seed 3: it has diverged" in lines
    twice = as_markdown(tables(runs([*ROWS, FAILED, replace(FAILED, seed=5)])))
    assert "Failed: random, seeds 3, 5: it has diverged" in twice


def test_the_figure_has_a_panel_a_setting_with_labels_and_all_arms() -> None:
    drawn = arms_figure(runs(ROWS))
    assert [ax.get_title() for ax in drawn.axes] == ["setting A", "setting B"]
    assert all(ax.get_xlabel() == "test accuracy (%)" for ax in drawn.axes)
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["dense", "random", "wide sparse"]


def test_the_same_rows_make_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = (write_report(runs(ROWS), tmp_path / name, "Study") for name in ("one", "two"))
    assert [path.name for path in first] == ["table.md", "figure.png", "figure.svg", "report.html"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_an_arm_that_failed_everywhere_leaves_an_empty_row() -> None:
    rows = [*ROWS[:3], FAILED]
    assert "| random | - | - | - | - | - | 0 |" in as_markdown(tables(runs(rows)))
    assert len(arms_figure(runs(rows)).axes) == 1


def moved(setting: str, arm: str, level: float) -> list[Row]:
    return [Row(arm, seed, "done", "", 209, level, level, level + 0.01 * seed, 1.0, setting) for seed in range(3)]


def test_curves_show_a_number_that_takes_three_values() -> None:
    assert curves_figure(runs(ROWS)) is None
    grid = [row for width in (4, 8, 16) for row in moved(f"A hidden={width} alpha=2", "dense", 0.05 * width)]
    drawn = curves_figure(runs(grid))
    assert drawn is not None
    (ax,) = drawn.axes
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (
        "A alpha=2",
        "neurons before the split",
        "test accuracy (%)",
    )
    xs, ys = ax.lines[0].get_data()
    assert list(xs) == [4, 8, 16]
    assert list(ys) == pytest.approx([21, 41, 81])
    assert ax.get_xscale() == "linear"


def test_a_grid_of_two_numbers_is_drawn_along_the_first_and_one_arm_stands_for_its_epochs() -> None:
    arms = ["dense", "random_at_0", "random_at_2", "random_at_10"]
    names = [f"A hidden={width} alpha={alpha}" for width in (4, 8, 32) for alpha in (2, 4, 8)]
    rows = [row for name in names for arm in arms for row in moved(name, arm, 0.5)]
    drawn = curves_figure(runs(rows))
    assert drawn is not None
    assert [ax.get_title() for ax in drawn.axes] == ["A alpha=2", "A alpha=4", "A alpha=8"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["dense", "random at 2"]
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == ["4", "8", "32"]
    late = epochs_figure(runs(rows))
    assert late is not None
    assert [ax.get_title() for ax in late.axes[:4]] == [names[0], names[3], names[6], names[1]]


def test_epochs_of_the_split_have_a_figure_of_their_own() -> None:
    timed = [row for epoch in (0, 2, 10) for row in moved("A", f"random_at_{epoch}", 0.9)]
    assert epochs_figure(runs(ROWS)) is None
    assert curves_figure(runs(timed)) is None
    drawn = epochs_figure(runs([*timed, *moved("A", "dense", 0.8)]))
    assert drawn is not None
    assert [ax.get_xlabel() for ax in drawn.axes] == ["epoch of the split"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["random", "dense, at any epoch"]


def test_settings_in_which_nothing_could_be_split_have_no_panel_of_epochs() -> None:
    timed = [row for epoch in (0, 2, 10) for row in moved("A", f"random_at_{epoch}", 0.9)]
    failed = [replace(row, setting="B", status="failed", why="too little is left") for row in timed]
    drawn = epochs_figure(runs([*failed, *timed, *moved("B", "dense", 0.8)]))
    assert drawn is not None
    assert [ax.get_title() for ax in drawn.axes] == ["A"]
    assert epochs_figure(runs([*failed, *moved("B", "dense", 0.8)])) is None


def test_many_settings_stand_in_rows() -> None:
    drawn = arms_figure(runs([row for each in range(5) for row in moved(f"S{each}", "dense", 0.5)]))
    assert [ax.get_visible() for ax in drawn.axes] == [True] * 5 + [False]


def test_an_arm_that_spends_more_is_marked() -> None:
    rows = [*ROWS, *moved("A", "ensemble", 0.95)]
    assert "| ensemble* |" in as_markdown(tables(runs(rows)))
    assert "ensemble*" in [label.get_text() for label in arms_figure(runs(rows)).axes[0].get_yticklabels()]


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("config: <script>alert(1)</script>")
    *_, page = write_report(runs([*ROWS, *moved("A", "ensemble", 0.95), FAILED]), tmp_path, "Study <x>")
    text = page.read_text()
    assert "<h1>Study &lt;x&gt;</h1>" in text
    assert "<script" not in text
    assert "+10.0 [+10.0, +10.0], +12.3 %" in text
    assert "Failed: random, seed 3: it has diverged" in text
    assert "marked with *" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_a_grid_of_many_settings_stands_in_a_few_tables() -> None:
    assert overview(runs(ROWS)) == []
    names = [f"A hidden={width} alpha={alpha}" for alpha in (2, 4) for width in (8, 16)]
    grid = [
        row
        for name in names
        for arm, level in {**LEVELS, "ensemble": 0.95}.items()
        for row in moved(name, arm, level)
        if (name, arm) != (names[0], "random")
    ]
    found = overview(runs(grid))
    assert [table.title.split(",")[0] for table in found] == [
        f"Test accuracy of A alpha={alpha} by hidden {what}"
        for alpha in (2, 4)
        for what in ("in %", "minus dense", "minus wide_sparse")
    ]
    accuracies, over_dense = found[3:5]
    assert accuracies.header == ("arm", "hidden=8", "hidden=16")
    assert accuracies.lines[0] == ("non-zeros", "209", "209")
    assert accuracies.lines[2] == ("random", "91.0 ± 0.6", "91.0 ± 0.6")
    assert [line[0] for line in over_dense.lines] == ["random", "wide_sparse", "ensemble*"]
    assert over_dense.lines[0][1] == "+10.0 [+10.0, +10.0], +12.3 %"
    assert ("random", "-", "91.0 ± 0.6") in found[0].lines


def test_settings_that_share_no_number_stand_side_by_side(tmp_path: Path) -> None:
    rows = [row for each in "ABCD" for arm, level in LEVELS.items() for row in moved(each, arm, level)]
    assert [table.header for table in overview(runs(rows))] == [("arm", *"ABCD")] * 3
    table, *_ = write_report(runs(rows), tmp_path, "Study")
    text = table.read_text()
    assert text.index("Test accuracy in %") < text.index("### Setting A")
    assert "36 runs took 36.0 seconds of CPU time." in text
