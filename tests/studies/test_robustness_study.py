"""Worse pictures, labels and samples are what they say, and the report says what the rows say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fpe_lightning.data import embeddings
from fpe_lightning.data.glyphs import GlyphDataset
from fpe_lightning.data.sources import ImageSplits
from studies import clip_probe, robustness
from studies.errors import StudyError
from studies.results import Row
from studies.robustness import Robustness, mislabelled
from studies.robustness_report import ERROR, findings
from studies.runs import Runs
from studies.study import Study
from studies.task import Task
from studies.training import run_block
from tests.support.arms import ARMS, arms


def samples(seed: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 20, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :5].argmax(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Robustness:
    """A setting of drawn samples in the place of embeddings."""
    setting = Robustness(hidden=6, epochs=4, split=1, batch_size=50, noise=[0.1], blur=[], shift=[2])
    task = Task(samples(0), samples(1), samples(2), classes=5)
    monkeypatch.setattr(clip_probe, "_embeddings", lambda *_: task)
    others = {name: samples(number) for number, name in enumerate(("clean", "noise=0.1", "shift=2"), 3)}
    monkeypatch.setattr(robustness, "_others", lambda *_: others)
    return setting


def test_wrong_labels_are_as_many_as_asked_and_all_of_them_wrong() -> None:
    labels = torch.arange(1000) % 7
    few, many = (mislabelled(labels, share, 7, seed=0) for share in (0.1, 0.4))
    assert int((few != labels).sum()) == 100
    assert int((many != labels).sum()) == 400
    assert torch.equal(many[few != labels], few[few != labels])  # a larger share adds to a smaller one
    assert set(many.unique().tolist()) == set(range(7))
    assert not torch.equal(few, mislabelled(labels, 0.1, 7, seed=1))
    assert torch.equal(mislabelled(labels, 0.0, 7, seed=0), labels)


def test_only_training_samples_get_fewer_and_worse(small: Robustness) -> None:
    whole, worse, other = (s.task(n) for s, n in ((small, 0), (replace(small, train_size=50, label_noise=0.2), 0),
                                                   (replace(small, train_size=50), 1)))  # fmt: skip
    assert whole.train[0] is small.task(1).train[0]  # nothing is copied where nothing is chosen
    assert [len(task.train[1]) for task in (whole, worse, other)] == [200, 50, 50]
    assert not torch.equal(worse.train[0], other.train[0])
    assert int((worse.train[1] != worse.train[0][:, :5].argmax(1)).sum()) == 10
    for before, after in ((whole.val, worse.val), (whole.test, worse.test)):
        assert torch.equal(before[1], after[1])


def test_every_run_is_measured_on_all_pictures(small: Robustness) -> None:
    rows = run_block(small, arms("dense", "wide_sparse", "random_incoming", "overlapping_incoming"), [0, 1])
    assert {row.status for row in rows} == {"done"}
    assert len({row.nonzeros for row in rows}) == 1
    names = ("clean", "noise=0.1", "shift=2")
    assert small.measures == (*names, *(ERROR + name for name in names))
    for row in rows:
        assert set(row.measures) == set(small.measures)
        assert all(0 <= value <= 1 for value in row.measures.values())


class Constant(torch.nn.Module):
    """The same logits for every input."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def test_a_calibration_error_is_confidence_minus_accuracy() -> None:
    x, y = torch.zeros(10, 2), torch.tensor([0] * 6 + [1] * 4)
    sure = Constant([2.0, 0.0, -1.0])
    three = Task((x, y), (x, y), (x, y), classes=3)
    confidence = float(sure.logits.softmax(0)[0])
    assert three.calibration_error([sure], three.test) == pytest.approx(confidence - 0.6, abs=1e-6)
    two = Task((x, y), (x, y), (x, y), classes=2)
    assert two.calibration_error([Constant([1.0])], two.test) == pytest.approx(
        abs(float(torch.sigmoid(torch.tensor(1.0))) - 0.4), abs=1e-6
    )
    # The mean of probabilities of two networks that disagree is less sure than either.
    both = [sure, Constant([0.0, 2.0, -1.0])]
    assert three.calibration_error(both, three.test) < three.calibration_error([sure], three.test)


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    parts = ImageSplits(*(GlyphDataset(part, size=94) for part in ("train", "val", "test")))
    monkeypatch.setenv("FPE_CACHE", str(tmp_path))
    monkeypatch.setattr(robustness, "load_images", lambda *_, **__: parts)
    monkeypatch.setattr(embeddings, "load_images", lambda *_, **__: parts)
    clip_probe._embeddings.cache_clear()
    robustness._others.cache_clear()
    yield
    clip_probe._embeddings.cache_clear()
    robustness._others.cache_clear()


def test_pictures_are_corrupted_before_they_are_encoded_and_kept_in_the_cache(few_glyphs: None, tmp_path: Path) -> None:
    setting = Robustness(noise=[0.3], blur=[2.0], shift=[3], pictures=10)
    task = setting.task(0)
    assert list(task.others) == ["clean", "noise=0.3", "blur=2", "shift=3"]
    clean, y = task.others["clean"]
    assert clean.shape == (10, 512)
    assert torch.equal(task.test[0][y], clean)  # picture i of 94 shows character i
    for name, (x, labels) in task.others.items():
        assert torch.equal(labels, y)
        torch.testing.assert_close(x.norm(dim=1), torch.ones(10), atol=1e-3, rtol=0)
        assert name == "clean" or bool(((x - clean).norm(dim=1) > 0.01).all())
    kept = sorted(path.name for path in (tmp_path / "embeddings").iterdir() if path.is_dir())
    assert len(kept) == 6
    robustness._others.cache_clear()
    again = setting.task(0).others
    assert all(torch.equal(again[name][0], x) for name, (x, _) in task.others.items())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"noise": [0.0]}, "The level of 'noise' has to be positive, found 0.0."),
        ({"shift": [0]}, "The level of 'shift' has to be a positive whole number of pixels, found 0."),
        ({"label_noise": 1.0}, "`label_noise` has to be at least 0 and below 1, found 1.0."),
        ({"label_noise": -0.1}, "`label_noise` has to be at least 0 and below 1, found -0.1."),
        ({"pictures": 0}, "`pictures` has to be at least 1, found 0."),
        ({"train_size": 0}, "`train_size` has to be at least 1, found 0."),
        ({"hidden": 0}, "`hidden` has to be at least 1, found 0."),
    ],
)
def test_a_setting_that_cannot_be_gets_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        Study({"S": Robustness(**values)}, arms("dense")).check()
    assert str(caught.value) == f"Setting 'S' cannot be: {sentence}"


def test_more_training_samples_than_there_are_get_one_sentence(small: Robustness) -> None:
    with pytest.raises(
        StudyError, match=r"^Setting 'S' has no data: Cannot choose 999 of 200 samples; `size` has to be"
    ):
        Study({"S": replace(small, train_size=999)}, arms("dense")).prepare()


def made(setting: str, lift: float) -> list[Row]:
    """Two seeds of three arms; the second arm is ahead by ``lift``."""
    return [
        Row(arm, seed, "done", "", 209, 0.9, 0.9, 0.9, 1.0, setting, measures={
            "clean": 0.8 + own, "noise=0.1": 0.5 + own, "noise=0.2": 0.4 + own + 0.01 * seed,
            "calibration error clean": 0.04, "calibration error noise=0.1": 0.2,
            "calibration error noise=0.2": 0.3 - own,
        })
        for arm, own in {"dense": 0.0, "random": lift, "wide_sparse": lift / 2}.items()
        for seed in range(2)
    ]  # fmt: skip


def test_the_report_holds_every_condition_and_differences_to_both_baselines() -> None:
    found = findings(Runs(made("S", 0.1), ARMS))
    tables = {table.title.partition(": ")[2]: {line[0]: line[1:] for line in table.lines} for table in found.tables}
    assert all(table.header == ("arm", "clean", "noise=0.1", "noise=0.2") for table in found.tables)
    levels = tables["accuracy in % on test pictures, mean ± standard error"]
    assert [levels[arm][2] for arm in ("dense", "random", "wide_sparse")] == ["40.5 ± 0.5", "50.5 ± 0.5", "45.5 ± 0.5"]
    dense, wide = (
        tables[f"accuracy in % minus {base}, paired, in points [95 %], then relative"]
        for base in ("dense", "wide_sparse")
    )
    assert dense["random"][1] == "+10.0 [+10.0, +10.0], +20.0 %"
    assert dense["wide_sparse"][1] == "+5.0 [+5.0, +5.0], +10.0 %"
    assert wide["random"][1] == "+5.0 [+5.0, +5.0], +9.1 %"
    assert (set(dense), set(wide)) == ({"random", "wide_sparse"}, {"dense", "random"})
    errors = tables["expected calibration error in % minus wide_sparse, paired, in points [95 %], then relative"]
    assert errors["random"][2] == "-5.0 [-5.0, -5.0], -20.0 %"


def test_the_figure_has_a_column_for_everything_that_gets_worse() -> None:
    settings = ["S label_noise=0 train_size=9", "S label_noise=0 train_size=4", "S label_noise=0.2 train_size=4",
                "S label_noise=0.4 train_size=4"]  # fmt: skip
    rows = [row for setting, lift in zip(settings, (0.1, 0.08, 0.06, 0.04), strict=True) for row in made(setting, lift)]
    first = findings(Runs(rows, ARMS)).tables[0]
    assert first.title.startswith("Expected calibration error in % on the clean pictures")
    assert first.lines[0] == (settings[0], "4.0 ± 0.0", "4.0 ± 0.0", "4.0 ± 0.0")
    drawn = findings(Runs(rows, ARMS)).figures["robustness"]
    top, bottom = drawn.axes[:3], drawn.axes[3:]
    assert [ax.get_xlabel().split("\n")[0] for ax in bottom] == [
        "noise (standard deviation,", "share of training labels", "training samples"]  # fmt: skip
    assert (top[0].get_ylabel(), bottom[0].get_ylabel()) == ("test accuracy (%)", "calibration error (%)")
    xs, ys = top[0].lines[0].get_data()
    assert (list(xs), list(ys)) == ([0, 0.1, 0.2], pytest.approx([80, 50, 40.5]))
    assert list(top[1].lines[0].get_data()[0]) == [0, 0.2, 0.4]
    assert list(top[2].lines[0].get_data()[0]) == [4, 9]


def test_rows_without_measures_make_no_figure() -> None:
    assert not findings(Runs([Row("dense", 0, "done", "", 9, 0.5, 0.5, 0.5, 1.0, "S")], ARMS)).figures
