"""The study of what children mean: paired networks, moments, table and figures, on data that are made here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

import fpe_lightning as fpe
from studies import children
from studies.arms import arms_named
from studies.children import Trained, activations, main, measure, study, train
from studies.children_report import Neurons, entropy_figure, lines_of, table
from studies.clip_probe import Probe
from studies.errors import StudyError
from studies.task import Task


@dataclass(frozen=True)
class Small(Probe):
    """Three classes of 24 numbers."""

    def task(self, seed: int) -> Task:
        generator = torch.Generator().manual_seed(7)
        y = torch.arange(48) % 3
        centres = torch.randn(3, 24, generator=generator)
        parts = [(centres[y] + 0.5 * torch.randn(48, 24, generator=generator), y) for _ in range(3)]
        return Task(*parts, classes=3)


SMALL = Small(hidden=3, alpha=2, epochs=4, split=2, batch_size=16)
ARMS = ["dense", "wide_sparse", "random_incoming", "overlapping_incoming", "random_incoming_at_1"]


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    return train(SMALL, arms_named(ARMS), range(2))


def same(left: torch.nn.Module | None, right: torch.nn.Module | None) -> bool:
    assert left is not None
    assert right is not None
    return all(torch.equal(mine, other) for mine, other in zip(left.parameters(), right.parameters(), strict=True))


def of(trained: list[Trained], arm: str, seed: int) -> Trained:
    (found,) = (each for each in trained if (each.arm, each.seed) == (arm, seed))
    return found


def test_every_arm_trains_on_every_seed_at_equal_non_zeros(trained: list[Trained]) -> None:
    assert [(each.arm, each.seed) for each in trained] == [(arm, seed) for arm in ARMS for seed in range(2)]
    assert len({fpe.count_nonzeros(each.network) for each in trained}) == 1
    assert {each.network.layers[0].out_features for each in trained if each.arm != "dense"} == {6}


def test_splits_of_a_seed_have_the_dense_network_of_that_moment_as_parent(trained: list[Trained]) -> None:
    for seed in range(2):
        random, overlapping = of(trained, "random_incoming", seed), of(trained, "overlapping_incoming", seed)
        assert same(random.parent, overlapping.parent)
        assert not same(random.parent, of(trained, "random_incoming_at_1", seed).parent)
        assert not same(random.parent, of(trained, "dense", seed).network)  # it trained on
        assert random.born is not None
        assert not same(random.born, random.network)


def test_a_dense_network_ends_as_if_nobody_had_been_split_off(trained: list[Trained]) -> None:
    alone = train(SMALL, arms_named(["dense"]), range(2))
    assert all(same(each.network, of(trained, "dense", each.seed).network) for each in alone)


def test_arms_that_have_no_neurons_to_compare_are_refused() -> None:
    for arm in ("ensemble", "dense_larger", "dropconnect", "random_redraw"):
        with pytest.raises(ValueError, match=f"Arm '{arm}' cannot be compared neuron by neuron"):
            train(SMALL, arms_named([arm]), [0])


def test_neurons_are_measured_on_test_samples_at_each_moment(trained: list[Trained]) -> None:
    each = of(trained, "random_incoming", 0)
    task = SMALL.task(0)
    rows = measure(each, task)
    assert [(row.moment, row.neurons) for row in rows] == [("before", 3), ("born", 6), ("end", 6)]
    entropy = fpe.interference.class_entropy(activations(each.network, task.test[0]), task.test[1])
    assert rows[-1].entropy == pytest.approx(float(entropy.nanmean()))
    raw = activations(each.network, task.test[0], raw=True)
    assert bool((raw < 0).any())
    assert rows[-1].raw_excess == pytest.approx(float(fpe.interference.excess_entropy(raw, task.test[1]).nanmean()))
    assert rows[-1].silent == int(entropy.isnan().sum())
    assert rows[-1].accuracy == task.accuracy([each.network], task.test)
    assert [row.moment for row in measure(of(trained, "dense", 0), task)] == ["end"]


ROWS = [
    *(Neurons("dense", seed, "end", 8, 1, 5.0 + seed, 0.2, 3.0 + seed, 4.5, 0.5) for seed in range(2)),
    *(Neurons("random", seed, "before", 8, 0, 4.0 + seed, 0.3, 2.0 + seed, 4.0, 0.4) for seed in range(2)),
    *(Neurons("random", seed, "end", 16, 0, 4.5 + seed, 0.3, 1.0 + seed, 4.2, 0.9) for seed in range(2)),
    *(Neurons("overlapping", seed, "before", 8, 0, 4.0 + seed, 0.3, 2.0 + seed, 4.0, 0.4) for seed in range(2)),
    *(Neurons("overlapping", seed, "end", 16, 16, math.nan, math.nan, math.nan, 4.0, 0.9) for seed in range(2)),
]


def test_the_table_pairs_by_seed_and_counts_silent_neurons() -> None:
    tables = [part.splitlines() for part in table(ROWS, 94).split("### ")[1:]]
    lines, free = ([[cell.strip() for cell in line.split("|")[1:-1]] for line in part[4:] if line] for part in tables)
    assert lines[0] == ["dense, at the end", "8", "50.0 ± 0.0", "5.50 ± 0.50", "-", "-", "0.200 ± 0.000", "12.5", "2"]
    assert lines[2][4:6] == ["+0.50 [+0.50, +0.50]", "-0.50 [-0.50, -0.50]"]
    assert lines[3] == ["overlapping, at the end", "16", "90.0 ± 0.0", "-", "-", "-", "-", "100.0", "2"]
    assert "at most 5.55 bits" in tables[1][0]
    assert free[2][1:4] == ["1.50 ± 0.50", "-1.00 [-1.00, -1.00]", "-2.00 [-2.00, -2.00]"]
    assert free[2][4:] == ["4.20 ± 0.00", "+0.20 [+0.20, +0.20]", "-0.30 [-0.30, -0.30]"]
    assert free[3][1] == "-"


def test_parents_that_arms_share_stand_once() -> None:
    expected = [("dense", "end"), ("random", "before"), ("random", "end"), ("overlapping", "end")]
    assert lines_of(ROWS) == expected


def test_the_figure_names_every_line_and_draws_those_that_have_a_value() -> None:
    figure = entropy_figure(ROWS, 94)
    plain, free = figure.axes
    assert [label.get_text() for label in plain.get_yticklabels()][1] == "random, parents before the split"
    assert (len(plain.containers), len(free.containers)) == (3, 4)
    assert "children just after it" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_study_writes_a_table_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = SimpleNamespace(test=[(Image.new("L", (8, 8)), label) for label in range(48)])
    monkeypatch.setattr(children, "load_images", lambda *_: images)
    written = study(SMALL, ["dense", "random_incoming"], seeds=1, output=str(tmp_path / "out"))
    assert [path.name for path in written] == ["children.md", "children_entropy.png", "children.png"]
    assert "random_incoming, children just after it" in written[0].read_text()
    assert all(Image.open(path).width > 300 for path in written[1:])
    again = study(SMALL, ["dense", "random_incoming"], seeds=1, output=str(tmp_path / "again"))
    assert written[0].read_text() == again[0].read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "found 0 seeds, 1 arms"),
        ({"arms": []}, "found 1 seeds, 0 arms"),
        ({"setting": Small(hidden=[3, 3])}, r"`hidden` \[3, 3\]"),
        ({"setting": Small(hidden=3, alpha=1)}, "`alpha` has to be at least 2, found 1"),
        ({"arms": ["ensemble"]}, "'ensemble' cannot be compared"),
        ({"arms": ["random_at_9"]}, "Arm 'random_at_9' splits at epoch 9, but there are 4"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(options: dict, message: str, tmp_path: Path) -> None:
    given = {"setting": SMALL, "arms": ["random_incoming"], "seeds": 1, "output": str(tmp_path / "out")}
    with pytest.raises(StudyError, match=message):
        study(**{**given, **options})
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds=0"], Console(width=200)) == 2
    assert "error: At least one seed" in capsys.readouterr().out
