"""The study of children: moments of paired networks, tables and figures, on data that are made here."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import fpe_lightning as fpe
from studies import children, clip_probe
from studies.__main__ import main
from studies.children import Children, _Kept, activations
from studies.children_report import MOMENTS, entropy_figure, lines_of, tables
from studies.errors import StudyError
from studies.results import Row
from studies.runs import Runs
from studies.selectivity import class_entropy, excess_entropy
from studies.study import Study
from studies.task import Task
from studies.training import run_block
from tests.support.arms import ARMS, arms


def classes() -> Task:
    """Three classes of 24 numbers."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(48) % 3
    centres = torch.randn(3, 24, generator=generator)
    parts = [(centres[y] + 0.5 * torch.randn(48, 24, generator=generator), y) for _ in range(3)]
    return Task(*parts, classes=3)


SMALL = Children(hidden=3, alpha=2, epochs=4, split=2, batch_size=16)
CHOSEN = ("dense", "wide_sparse", "random_incoming", "overlapping_incoming", "random_incoming_at_1")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Task:
    task = classes()
    monkeypatch.setattr(clip_probe, "_embeddings", lambda *_: task)
    images = SimpleNamespace(test=[(Image.new("L", (8, 8)), label) for label in range(48)])
    monkeypatch.setattr(children, "load_images", lambda *_: images)
    return task


@pytest.fixture
def rows() -> dict[tuple[str, int], Row]:
    return {(row.arm, row.seed): row for row in run_block(SMALL, arms(*CHOSEN), range(2))}


def kept(arm: str) -> dict[str, fpe.networks.MLP]:
    setting = _Kept(**vars(SMALL))
    run_block(setting, arms(arm), [0])
    return setting.kept


def moment(row: Row, name: str) -> dict[str, float]:
    """The measures of one moment."""
    return {key: value for key, value in row.measures.items() if key.endswith(f"_{name}")}


def test_every_arm_trains_on_every_seed_at_equal_non_zeros(rows: dict[tuple[str, int], Row]) -> None:
    assert list(rows) == [(arm, seed) for seed in range(2) for arm in CHOSEN]
    assert {row.status for row in rows.values()} == {"done"}
    assert len({row.nonzeros for row in rows.values()}) == 1
    assert {row.measures["neurons_end"] for row in rows.values() if row.arm != "dense"} == {6}


def test_splits_of_a_seed_have_the_dense_network_of_that_moment_as_parent(rows: dict[tuple[str, int], Row]) -> None:
    for seed in range(2):
        random = rows["random_incoming", seed]
        assert moment(random, "before") == moment(rows["overlapping_incoming", seed], "before")
        assert moment(random, "before") != moment(rows["random_incoming_at_1", seed], "before")
        dense = rows["dense", seed].measures
        assert random.measures["entropy_before"] != dense["entropy_end"]  # it trained on
        assert random.measures["entropy_after"] != random.measures["entropy_end"]
        assert set(dense) == set(moment(random, "end"))


def test_a_dense_network_ends_as_if_nothing_had_been_split(rows: dict[tuple[str, int], Row]) -> None:
    for alone in run_block(SMALL, arms("dense"), range(2)):
        assert replace(alone, seconds=0) == replace(rows["dense", alone.seed], seconds=0)


def test_arms_that_have_no_neurons_to_compare_are_refused() -> None:
    for arm in ("ensemble", "dense_larger", "dropconnect", "random_redraw", "random_then_3"):
        with pytest.raises(StudyError, match=f"Arm '{arm}' .* its neurons cannot be compared one by one"):
            Study({"S": SMALL}, arms(arm)).check()


def test_neurons_are_measured_on_test_samples_at_each_moment(rows: dict[tuple[str, int], Row], small: Task) -> None:
    row, networks = rows["random_incoming", 0], kept("random_incoming")
    assert list(networks) == list(MOMENTS)
    assert [row.measures[f"neurons_{name}"] for name in MOMENTS] == [3, 6, 6]
    x, y = small.test
    for name, network in networks.items():
        entropy = class_entropy(activations(network, x), y)
        raw = activations(network, x, raw=True)
        assert bool((raw < 0).any())
        expected = {
            "entropy": float(entropy.nanmean()),
            "raw_excess": float(excess_entropy(raw, y).nanmean()),
            "silent": int(entropy.isnan().sum()),
            "accuracy": small.accuracy([network], small.test),
        }
        found = {value: row.measures[f"{value}_{name}"] for value in expected}
        assert found == pytest.approx(expected, abs=1e-4)


def made(arm: str, seed: int, **moments: tuple[float, ...]) -> Row:
    """A row by the values of its moments, in the order of the columns."""
    measures = {f"{v}_{m}": n for m, own in moments.items() for v, n in zip(children.VALUES, own, strict=True)}
    return Row(arm, seed, "done", "", 9, 0.5, 0.5, 0.5, 1.0, "S", measures=measures)


NAN = math.nan
ROWS = [
    *(made("dense", s, end=(8, 1, 5.0 + s, 0.2, 3.0 + s, 4.5, 0.5)) for s in range(2)),
    *(
        made("random", s, before=(8, 0, 4.0 + s, 0.3, 2.0 + s, 4.0, 0.4), end=(16, 0, 4.5 + s, 0.3, 1.0 + s, 4.2, 0.9))
        for s in range(2)
    ),
    *(
        made("overlapping", s, before=(8, 0, 4.0 + s, 0.3, 2.0 + s, 4.0, 0.4), end=(16, 16, NAN, NAN, NAN, 4.0, 0.9))
        for s in range(2)
    ),
]
RUNS = Runs(ROWS, ARMS)


def test_the_table_pairs_by_seed_and_counts_silent_neurons() -> None:
    plain, free = tables(RUNS, "S", 94)
    lines = [list(line) for line in plain.lines]
    assert lines[0] == ["dense, at the end", "8", "50.0 ± 0.0", "5.50 ± 0.50", "-", "-", "0.200 ± 0.000", "12.5", "2"]
    assert lines[2][4:6] == ["+0.50 [+0.50, +0.50]", "-0.50 [-0.50, -0.50]"]
    assert lines[3] == ["overlapping, at the end", "16", "90.0 ± 0.0", "-", "-", "-", "-", "100.0", "2"]
    assert "at most 5.55 bits" in free.title
    assert free.lines[2][1:4] == ("1.50 ± 0.50", "-1.00 [-1.00, -1.00]", "-2.00 [-2.00, -2.00]")
    assert free.lines[2][4:] == ("4.20 ± 0.00", "+0.20 [+0.20, +0.20]", "-0.30 [-0.30, -0.30]")
    assert free.lines[3][1] == "-"


def test_parents_that_arms_share_stand_once() -> None:
    expected = [("dense", "end"), ("random", "before"), ("random", "end"), ("overlapping", "end")]
    assert lines_of(RUNS, "S") == expected


def test_the_figure_names_every_line_and_draws_those_that_have_a_value() -> None:
    figure = entropy_figure(RUNS, "S", 94)
    plain, free = figure.axes
    assert [label.get_text() for label in plain.get_yticklabels()][1] == "random, parents before the split"
    assert (len(plain.containers), len(free.containers)) == (3, 4)
    assert "children just after it" in [text.get_text() for text in figure.legends[0].get_texts()]


TINY = """
settings:
  S: {hidden: 3, alpha: 2, epochs: 4, split: 2, batch_size: 16}
arms: {dense: Dense, random_incoming: {expansion: {prune: incoming}}}
seeds: 1
"""


def run(config: Path, *words: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=300)
    code = main(["children", "--config", str(config), *words], console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_study_writes_tables_and_figures_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    texts = []
    for _ in range(2):  # the second time nothing is left to run
        code, said = run(tmp_path / "tiny.yaml", f"--output={tmp_path / 'out'}")
        assert (code, "2 runs, 0 failed" in said) == (0, True)
        texts.append((tmp_path / "out" / "table.md").read_text())
    assert texts[0] == texts[1]
    assert "random_incoming, children just after it" in texts[0]
    for name in ("entropy.png", "children.png"):
        assert Image.open(tmp_path / "out" / name).width > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "1 settings x 1 arms x 0 seeds"),
        ({"arms": {}}, "1 settings x 0 arms x 24 seeds"),
        (
            {"settings": {"S": Children(hidden=[3, 3])}},
            r"`hidden` is the width of the one hidden layer, found \[3, 3\]",
        ),
        ({"settings": {"S": Children(hidden=3, alpha=1)}}, "`alpha` has to be at least 2, found 1"),
        ({"arms": arms("random_at_9")}, "it splits at epoch 9, but there are 4"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(options: Mapping[str, Any], message: str) -> None:
    given: dict[str, Any] = {"settings": {"S": SMALL}, "arms": arms("random_incoming"), **options}
    with pytest.raises(StudyError, match=message):
        Study(**given).check()


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    code, said = run(tmp_path / "tiny.yaml", "--seeds=0", f"--output={tmp_path / 'out'}")
    assert code == 2
    assert "error: The grid is empty" in said
    assert not (tmp_path / "out").exists()
