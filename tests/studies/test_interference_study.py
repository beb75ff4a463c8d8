"""Measures around a split are those of the networks, and the report says what the rows say."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.interference import (
    clause_collisions,
    feature_capacity,
    mean_absolute_cosine_similarity,
    mean_cosine_similarity,
)
from fpe_lightning.networks import MLP
from studies.__main__ import main
from studies.errors import StudyError
from studies.interference import Interference
from studies.interference_report import accuracies, findings, fold, gain, points
from studies.results import Row
from studies.runs import Runs
from studies.study import Study
from studies.tables import as_markdown
from studies.training import run_block
from tests.support.arms import ARMS, arms

SMALL = Interference(epochs=20, when=0.5, data={"samples": 128})


def test_measures_are_those_of_the_network_at_the_split_and_at_the_end() -> None:
    rows = {row.arm: row for row in run_block(SMALL, arms("dense", "random", "wide_sparse"), [4])}
    task = SMALL.task(4)
    x, y = task.train[0], task.train[1].float()
    torch.manual_seed(4)
    network = MLP(24, 8, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=SMALL.lr)
    seen: dict[str, float] = {}

    def look(moment: str) -> None:
        weight = network.layers[0].weight.detach()
        seen[f"capacity_{moment}"] = float(feature_capacity(weight).mean())
        seen[f"cosine_{moment}"] = float(mean_cosine_similarity(weight))
        seen[f"absolute_cosine_{moment}"] = float(mean_absolute_cosine_similarity(weight))

    for epoch in range(20):
        if epoch == 10:
            look("before")
            fpe.expand(network, fpe.Paper(seed=4), optimizer=optimizer, example_inputs=x[:2])
            look("after")
            mask = network.layers[0].fpe_mask_weight
            assert task.groups is not None
            parents = torch.arange(16) // 2
            seen["collisions_after"] = float(clause_collisions(mask, task.groups, parents))
            seen["coverage_after"] = sum(bool(mask[:, list(g)].all(1).any()) for g in task.groups) / len(task.groups)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(x).squeeze(1), y).backward()
        optimizer.step()
    look("end")
    assert rows["random"].measures == pytest.approx(seen, abs=1e-4)
    assert set(seen) == set(SMALL.measures)
    for arm in ("dense", "wide_sparse"):  # neither was split
        assert set(rows[arm].measures) == {"capacity_end", "cosine_end", "absolute_cosine_end"}


def test_members_of_an_ensemble_are_averaged_and_a_failed_run_measures_nothing() -> None:
    (row,) = run_block(SMALL, arms("ensemble"), [0])
    assert set(row.measures) == set(SMALL.measures)
    (alone,) = run_block(SMALL, arms("random"), [0])
    assert row.measures["capacity_before"] == pytest.approx(alone.measures["capacity_before"], abs=1e-4)
    assert row.measures["capacity_after"] != pytest.approx(alone.measures["capacity_after"], abs=1e-6)
    (failed,) = run_block(Interference(alpha=40, epochs=2, when=0.0, data={"samples": 32}), arms("random"), [0])
    assert (failed.status, failed.measures) == ("failed", {})


def test_the_split_is_a_share_of_the_epochs_unless_the_arm_says_an_epoch() -> None:
    chosen = arms("dense", "random", "random_at_3", "wide_sparse")
    assert [SMALL.starts(arm) for arm in chosen.values()] == [20, 10, 3, 0]
    assert Interference(split=7).starts(chosen["random"]) == 7


def row(setting: str, arm: str, seed: int, test: float, measures: Mapping[str, float]) -> Row:
    return Row(arm, seed, "done", "", 209, test, test, test, 1.0, setting, measures=measures)


def runs(*rows: Row) -> Runs:
    return Runs(rows, ARMS)


def made(gains: Mapping[str, float], folds: Mapping[str, float]) -> list[Row]:
    """Rows of given relative gains and fold changes of the capacity, two seeds each."""
    rows = []
    for setting, factor in gains.items():
        for seed, wobble in enumerate((-0.1, 0.1)):
            rows.append(row(setting, "dense", seed, 0.5 + wobble, {"capacity_end": 0.2 + wobble}))
            split = {
                "capacity_before": 0.3 + wobble,
                "capacity_after": (0.3 + wobble) * folds[setting],
                "capacity_end": 0.2 * folds[setting] ** 2,
                "collisions_after": 0.1,
            }
            rows.append(row(setting, "random", seed, (0.5 + wobble) * (1 + factor), split))
    return rows


FOLDS = {"A hidden=2": 1.5, "A hidden=4": 2.0, "A hidden=8": 3.0, "A hidden=16": 2.5}
ROWS = made({setting: 0.1 * value for setting, value in FOLDS.items()}, FOLDS)
EXACT = runs(*ROWS)


def test_fold_changes_and_gains_are_ratios_of_means() -> None:
    setting = "A hidden=2"
    assert fold(EXACT, setting, "random", "capacity", "split") == pytest.approx(1.5)
    assert fold(EXACT, setting, "random", "capacity", "end") == pytest.approx(1.5**2)
    assert fold(EXACT, setting, "random", "collisions", "split") == pytest.approx(0.1)  # a dense layer has 1
    assert fold(EXACT, setting, "random", "cosine", "split") is None
    assert gain(EXACT, setting, "random") == pytest.approx(15)
    assert [point.arm for point in points(EXACT, "capacity", "split")] == ["random"] * 4


def test_layers_without_cosines_make_no_point_and_leave_the_others_in_the_fit() -> None:
    rows = [
        Row(**{**vars(each), "measures": {name.replace("capacity", "cosine"): v for name, v in each.measures.items()}})
        for each in ROWS
    ]
    dead = next(each for each in rows if each.setting == "A hidden=16" and each.arm == "random")
    rows[rows.index(dead)] = Row(**{**vars(dead), "measures": {**dead.measures, "cosine_after": math.nan}})
    assert fold(runs(*rows), "A hidden=16", "random", "cosine", "split") is None
    assert [point.fold for point in points(runs(*rows), "cosine", "split")] == pytest.approx([1.5, 2, 3])
    text = as_markdown(findings(runs(*rows)).tables)
    assert "| mean cosine similarity | just after / just before the split | 3 | +10 | 1.00 [1.00, 1.00] |" in text
    assert "| A | 3 to 4 | - | - | 1.00 [1.00, 1.00] rising |" in text  # at the end it has one
    assert "| A hidden=16 | random | 50.0 -> 62.5 (+25.0 %) | 0.300 -> - (-); 0.200 -> 1.250 (6.25) |" in text


def test_the_report_holds_fits_and_a_panel_for_each_measure() -> None:
    other = [Row(**{**vars(each), "setting": each.setting.replace("A", "B")}) for each in ROWS]
    found = findings(runs(*ROWS, *other))
    text = as_markdown(found.tables)
    line = next(line for line in text.splitlines() if line.startswith("| feature capacity"))
    assert line == (
        "| feature capacity | just after / just before the split | 4 | +10 | 1.00 [1.00, 1.00] | +1.00 | "
        "1.00 [1.00, 1.00] |"
    )
    assert "| clause collisions | just after / just before the split | 4 | - | - | - | - |" in text  # it never varies
    assert (
        "| A hidden=2 | random | 50.0 -> 57.5 (+15.0 %) | 0.300 -> 0.450 (1.50); 0.200 -> 0.450 (2.25) | 1 -> 0.100 |"
    ) in text
    assert list(found.figures) == list(found.captions) == ["interference_A", "interference_B"]
    for drawn in found.figures.values():
        shown = [ax for ax in drawn.axes if ax.get_visible()]
        assert len(shown) == 3  # capacity at the split and at the end, collisions at the split
        assert shown[0].get_title() == "R² = 1.00 [1.00, 1.00]"
        assert shown[0].get_ylabel() == "just after / just before the split\nrelative gain (%)"
        assert all("fold change of" in ax.get_xlabel() for ax in shown)


def test_one_table_says_how_much_each_measure_explains_and_which_way() -> None:
    falling = [
        Row(**{**vars(each), "setting": each.setting.replace("A hidden=", "b c hidden=[2, 2] width=")})
        for each in made({setting: -0.1 * value for setting, value in FOLDS.items()}, FOLDS)
    ]
    table = findings(runs(*ROWS, *falling)).tables[0]
    assert table.header[:4] == (
        *("study", "points"),
        *("feature capacity, at the split", "feature capacity, at the end"),
    )
    found = {line[0]: line[1:4] for line in table.lines}
    assert found["A"][:2] == ("4", "1.00 [1.00, 1.00] rising")
    assert found["b c"][:2] == ("4", "1.00 [1.00, 1.00] falling")  # a list of widths is no part of the name
    assert all(line[4:] == ("-",) * 4 for line in table.lines)  # cosines were not measured
    assert list(findings(runs(*falling)).figures) == ["interference_b_c"]


def test_a_gain_is_over_the_seeds_that_have_both_accuracies() -> None:
    rows = runs(row("A", "dense", 0, 0.5, {}), row("A", "dense", 1, 0.1, {}), row("A", "random", 0, 0.6, {}))
    assert accuracies(rows, "A", "random") == pytest.approx((50, 60))
    assert gain(rows, "A", "random") == pytest.approx(20)
    assert gain(rows, "A", "shared") is None


def test_rows_without_measures_make_no_figure() -> None:
    assert not findings(runs(row("A", "dense", 0, 0.5, {}))).figures


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"of": "bolean"}, "`of` has to be one of boolean, clip_probe, cnn, deep, pixels, transformer, found 'bolean'"),
        ({"when": 1.0}, "`when` has to be at least 0 and below 1, found 1.0"),
        (
            {"data": {"clause": 2}},
            "`data` of 'boolean' has no 'clause'. Did you mean 'clauses'? Known: clauses, literals, inputs, samples, "
            "coding, positives",
        ),
        ({"of": "pixels", "data": {"clauses": 2}}, "`data` of 'pixels' has no 'clauses'. Known: dataset, data_dir"),
        ({"data": {"lr": 0.1}}, "`data` of 'boolean' has no 'lr'"),
        ({"data": {"samples": "many"}}, "`data` of 'boolean' cannot be: "),
        ({"of": "cnn", "hidden": [4, 4]}, "`hidden` is the one hidden width of the head, found [4, 4]"),
        ({"of": "cnn", "data": {"shrink": 0}}, "`shrink` has to be at least 1, found 0"),
        ({"of": "transformer", "hidden": [4, 4, 4]}, "`hidden` has to be one number, or one for each block"),
        ({"of": "deep", "hidden": []}, "`hidden` has to be at least 1, found []"),
        ({"alpha": 1}, "`alpha` has to be at least 2, found 1"),
    ],
)
def test_a_setting_that_cannot_be_gets_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        Study({"S": Interference(**values)}, arms("dense")).check()
    assert str(caught.value).startswith(f"Setting 'S' cannot be: {sentence}")
    assert "\n" not in str(caught.value)


TINY = """
settings:
  boolean: {of: boolean, epochs: 8, data: {samples: 32}}
  digits: {of: pixels, epochs: 2, batch_size: 512}
  picture: {of: cnn, epochs: 2, batch_size: 128, data: {classes: [15, 17], shrink: 8, channels: [4]}}
grid:
  - {hidden: [2, 4], when: [0.5]}
arms: {dense: Dense, random: Split}
seeds: 1
"""


def test_the_command_measures_and_fits_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["interference", "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out")]
    console = Console(file=io.StringIO(), width=300)
    assert main(words, console) == 0
    with (tmp_path / "out" / "results.csv").open() as file:
        records = list(csv.DictReader(file))
    assert len(records) == 12
    split = next(each for each in records if each["arm"] == "random" and each["setting"].startswith("digits"))
    assert 0 < float(split["capacity_before"]) < float(split["capacity_after"]) <= 1
    assert split["collisions_after"] == ""  # only formulas have clauses
    for name in ("interference_boolean.png", "interference_digits.svg", "interference_picture.png", "figure.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4  # accuracies, and fits of each
    lines = (tmp_path / "out" / "results.csv").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "results.csv").write_text("".join(lines[:5]))

    def table() -> str:
        text = (tmp_path / "out" / "table.md").read_text()
        assert text.count("of CPU time") == 1
        return re.sub(r"took .* of CPU time", "", text)  # what is trained again takes another time

    before = table()
    assert main(words, console) == 0
    assert table() == before
