"""The data of studies, and the messages where there are none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fpe_lightning.networks import MLP
from studies import clip_probe
from studies.boolean import Regime
from studies.clip_probe import Probe
from studies.errors import StudyError
from studies.from_scratch import begin, larger, outline, parameters
from studies.pixels import Pixels
from studies.sets import digits
from studies.study import Study, on_grid
from studies.task import Task
from studies.training import run_block
from tests.support.arms import ARMS, KINDS, arms


def classes(seed: int = 0, n: int = 60) -> Task:
    x = torch.randn(n, 20, generator=torch.Generator().manual_seed(seed))
    y = x[:, :5].argmax(1)
    return Task((x, y), (x, y), (x, y), classes=5)


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    task = classes()
    monkeypatch.setattr(clip_probe, "_embeddings", lambda *_: task)
    return Probe(hidden=6, epochs=4, split=2, batch_size=16)


def test_every_arm_of_a_probe_keeps_the_budget_unless_it_is_marked(probe: Probe) -> None:
    names = [name for name in KINDS if name != "clause"]
    rows = run_block(probe, arms(*names), [0, 1])
    budget = 21 * 6 + 7 * 5
    assert {row.status for row in rows} == {"done"}
    assert {row.arm for row in rows if row.nonzeros != budget} == {n for n in names if ARMS[n].marked}


@pytest.mark.parametrize("hidden", [[6, 6, 6], [6] * 5])
def test_deep_networks_keep_it_too(probe: Probe, hidden: list[int]) -> None:
    deep = Probe(**{**vars(probe), "hidden": hidden})
    rows = run_block(deep, arms("dense", "random", "interaction_at_0", "wide_sparse", "dense_larger"), [0])
    assert [row.status for row in rows] == ["done"] * 5
    assert len({row.nonzeros for row in rows[:4]}) == 1 < rows[4].nonzeros / rows[0].nonzeros


def test_an_arm_in_mini_batches_does_not_depend_on_the_others(probe: Probe) -> None:
    alone = run_block(probe, arms("random"), [1])
    among = run_block(probe, arms("dense", "random_at_0", "random", "wide_sparse", "ensemble"), [0, 1])
    (same,) = [row for row in among if row.arm == "random" and row.seed == 1]
    assert same.test == pytest.approx(alone[0].test, abs=1 / 60)


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    task = classes()
    networks = [begin(ARMS["dense"], Probe(hidden=3), task, seed) for seed in range(2)]
    mean = sum(network(task.test[0]).softmax(1) for network in networks)
    assert isinstance(mean, torch.Tensor)
    assert task.accuracy(networks, task.test) == pytest.approx(float((mean.argmax(1) == task.test[1]).float().mean()))


def test_residuals_are_targets_minus_probabilities() -> None:
    task, network = classes(), MLP(20, 3, 5)
    torch.testing.assert_close(task.residuals(network).sum(1), torch.zeros(60), atol=1e-5, rtol=0)
    formula = Regime(samples=32).task(0)
    assert set(formula.targets.unique().tolist()) == {0.0, 1.0}
    assert bool(((formula.residuals(MLP(24, 3, 1)) > 0) == (formula.targets.T > 0)).all())


def test_a_budget_that_a_wide_network_cannot_meet_fails_alone(probe: Probe) -> None:
    rows = run_block(Probe(**{**vars(probe), "hidden": 2, "alpha": 9}), arms("dense", "wide_sparse"), [0])
    assert [row.status for row in rows] == ["done", "failed"]
    assert "use a smaller alpha" in rows[1].why


def test_hidden_biases_begin_at_zero_where_asked(probe: Probe) -> None:
    for arm in (ARMS["dense"], ARMS["wide_sparse"]):
        network = begin(arm, Probe(**{**vars(probe), "zero_biases": True}), classes(), 0)
        hidden, classifier = network.linear_layers()
        assert not bool(hidden.bias.any())
        assert bool(classifier.bias.all())


def test_placed_masks_hold_the_pairs_that_matter_together() -> None:
    task = Regime().task(0)
    mask = begin(ARMS["wide_placed"], Regime(), task, 0).layers[0].fpe_mask_weight
    random = begin(ARMS["wide_sparse"], Regime(), task, 0).layers[0].fpe_mask_weight
    assert mask.sum() == random.sum()
    whole = [
        sum(bool(mask[row, list(group)].all()) for row in range(16) for group in task.groups) for mask in (mask, random)
    ]
    assert whole[0] > 2 * whole[1]


def test_a_larger_network_is_the_smallest_that_is_large_enough() -> None:
    # 21 * 30 + 31 * 5 = 785 parameters; 21 * 37 + 38 * 5 are 1.23 times as many, 21 * 36 + 37 * 5 are 1.199 times.
    assert larger([30], 1.2, lambda widths: 21 * widths[0] + 5 * (widths[0] + 1)) == [37]
    assert larger([30], 1.19, lambda widths: 21 * widths[0] + 5 * (widths[0] + 1)) == [36]
    setting, task = Probe(hidden=[32, 32, 32]), classes()
    wider = larger([32, 32, 32], 1.2, lambda widths: parameters(outline(setting, task, widths)))
    assert wider == [36, 36, 36]
    assert larger([8, 4], 1.2, lambda widths: widths[0] * widths[1]) == [9, 5]


def test_digits_are_split_by_class_and_standardised() -> None:
    task = digits()
    parts = [task.train, task.val, task.test]
    assert sum(len(y) for _, y in parts) == 1797
    assert all(y.bincount(minlength=10).min() > len(y) / 12 for _, y in parts)
    rows = {tuple(row.tolist()) for x, _ in parts for row in x}
    assert len(rows) == 1797  # none is in two parts
    moving = task.train[0].std(0) > 0
    torch.testing.assert_close(task.train[0].mean(0)[moving], torch.zeros(int(moving.sum())), atol=1e-5, rtol=0)


def test_data_that_are_not_there_get_one_sentence(tmp_path: Path) -> None:
    for setting in (
        Pixels(dataset="fashion_mnist", data_dir=str(tmp_path)),
        Probe(dataset="cifar100", data_dir=str(tmp_path)),
    ):
        with pytest.raises(StudyError, match=r"^Setting 'S' has no data: [^\n]+$"):
            Study({"S": setting}, arms("dense")).prepare()
    with pytest.raises(StudyError, match=r"has no data: .*glyphs"):
        Study({"S": Probe(dataset="glyfs")}, arms("dense")).prepare()


def test_digits_without_scikit_learn_get_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(StudyError, match=r"The digits come with scikit-learn: `pip install scikit-learn`\."):
        digits()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"hidden": 0}, "`hidden` has to be at least 1, found 0."),
        ({"hidden": [4, 0]}, r"`hidden` has to be at least 1, found \[4, 0\]."),
        ({"alpha": 1}, "`alpha` has to be at least 2, found 1."),
        ({"epochs": 0, "split": 0}, "`epochs` has to be at least 1, found 0."),
        ({"batch_size": 0}, "`batch_size` has to be at least 1, found 0."),
        ({"lr": 0.0}, "Learning rates have to be positive, found 0.0 and None."),
    ],
)
def test_a_setting_that_cannot_be_gets_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=f"^Setting 'S' cannot be: {sentence}$"):
        Study({"S": Probe(**values)}, arms("dense")).check()


def test_a_grid_of_an_unknown_key_is_refused() -> None:
    with pytest.raises(StudyError, match=r"Unknown key `width` of a grid. Known: hidden, alpha, "):
        on_grid({"S": Probe()}, [{"width": [2]}])
