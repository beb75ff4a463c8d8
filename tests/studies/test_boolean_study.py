"""A block of the Boolean study is the runs it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.networks import MLP
from studies.boolean import Regime
from studies.training import run_block
from tests.support.arms import KINDS, arms

SMALL = Regime(epochs=60, split=20, samples=128)


def test_every_arm_has_as_many_nonzeros_as_the_dense_one() -> None:
    regime = Regime(epochs=4, split=2, samples=64)
    rows = run_block(regime, KINDS, [0, 1])
    assert [(row.arm, row.seed) for row in rows] == [(name, seed) for seed in (0, 1) for name in KINDS]
    assert {row.status for row in rows} == {"done"}
    for row in rows:
        budget = 24 * 8 + 8 + 8 + 1
        spent = {"dense_larger": 24 * 10 + 10 + 10 + 1, "ensemble": 3 * budget, "dropconnect": 16 * 24 + 16 + 16 + 1}
        assert row.nonzeros == spent.get(row.arm, budget)


@pytest.mark.parametrize(
    "regime", [SMALL, Regime(epochs=60, split=20, switch=20, lr_after=0.01, samples=128), Regime(epochs=60, switch=40)]
)
def test_a_split_run_equals_a_plain_loop(regime: Regime) -> None:
    regime = Regime(**{**vars(regime), "epochs": 60, "split": 20, "samples": 128, "lr": 3e-3})
    rows = run_block(regime, arms("dense", "random", "wide_sparse"), [3, 4])
    task = regime.task(4)
    x, y = task.train[0], task.train[1].float()
    torch.manual_seed(4)
    network = MLP(24, 8, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=regime.lr)
    for epoch in range(regime.epochs):
        if epoch == regime.split:
            fpe.expand(network, fpe.Paper(seed=4), optimizer=optimizer, example_inputs=x[:2])
        if epoch == regime.switch:
            optimizer = torch.optim.Adam(network.parameters(), lr=regime.lr_after or regime.lr)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(x).squeeze(1), y).backward()
        optimizer.step()
    (row,) = [row for row in rows if row.arm == "random" and row.seed == 4]
    accuracy = ((network(task.test[0]).squeeze(1) > 0) == task.test[1]).float().mean()
    assert row.test == pytest.approx(float(accuracy), abs=2 / 4096)  # a sample on the border may fall to either side


def test_an_arm_does_not_depend_on_the_other_arms_and_seeds() -> None:
    alone = run_block(SMALL, arms("random"), [1])
    among = run_block(SMALL, arms("dense", "random_at_0", "random", "random_reset", "wide_sparse"), [0, 1, 2])
    (same,) = [row for row in among if row.arm == "random" and row.seed == 1]
    assert same.val == pytest.approx(alone[0].val, abs=2 / 2048)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run_block(Regime(epochs=2, split=1, samples=32), arms("random", "wide_sparse", "random_redraw"), [0])
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_adds_up_to_the_work_announced() -> None:
    chosen = arms("dense", "random", "random_at_0", "wide_sparse")
    seen: list[int] = []
    run_block(SMALL, chosen, [0, 1], seen.append)
    assert sum(seen) == 2 * SMALL.work(list(chosen.values())) == 2 * (60 + 40 + 60 + 60)


def test_a_network_that_diverges_is_recorded_as_failed_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = MLP.__init__

    def broken(self: MLP, *args: object, **kwargs: object) -> None:
        draw(self, *args, **kwargs)  # type: ignore[arg-type]
        if type(self) is MLP:
            nn.init.constant_(self.layers[0].weight, float("nan"))

    monkeypatch.setattr(MLP, "__init__", broken)
    rows = {row.arm: row for row in run_block(SMALL, arms("dense", "random", "wide_sparse"), [0])}
    assert (rows["dense"].status, rows["random"].status, rows["wide_sparse"].status) == ("failed", "failed", "done")
    assert "no longer finite" in rows["dense"].why
    assert "the run has diverged" in rows["random"].why
