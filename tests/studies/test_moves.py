"""Masks that change while networks train: budgets, folds, schedules, and what they cost."""

from __future__ import annotations

import pytest
import torch

import fpe_lightning as fpe
from fpe_lightning.networks import MLP
from studies.arms import Arm, Gradual, Longer, LowRank, Split, WideSparse
from studies.cost import Cost
from studies.from_scratch import begin, erdos_renyi, parameters
from studies.moves import Moves, Shrink, mask_all_, room
from studies.rewiring import Rewiring
from studies.stacked import Stack, train_together
from studies.task import Task
from studies.training import run_block

INCOMING = fpe.Paper(prune="incoming")
BOTH = Moves(scope="model", until=0.9)
ARMS: dict[str, Arm] = {
    "rigl": WideSparse(moves=Moves()),
    "set": WideSparse(moves=Moves(growth="random")),
    "rigl_both": WideSparse(allocation="erk", moves=BOTH),
    "one_shot": WideSparse(scored=True),
    "fold": Split(INCOMING, moves=Moves(folded=True)),
    "fold_both": Split(moves=Moves(folded=True, scope="model")),
    "seldom": WideSparse(moves=Moves(every=2)),
    "late": Split(INCOMING, at=3, moves=Moves(begin=0.5)),
}
SETTING = Rewiring(hidden=4, alpha=2, epochs=6, split=1)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    """Forty samples of 24 numbers in three classes, in place of any data set."""
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3].argmax(1)).long()
    found = Task((x, y), (x, y), (x, y), classes=3)
    monkeypatch.setattr(Rewiring, "task", lambda self, seed: found)
    return found


def stack_of(arm: Arm, task: Task, alpha: int = 2) -> Stack:
    network = begin(arm, SETTING, task, 0)
    assert isinstance(network, MLP)
    assert arm.schedule is not None
    mask_all_(network, arm.schedule)
    return Stack([network], [torch.optim.Adam(network.parameters())], watched=True)


def test_every_arm_keeps_the_budget_and_unmarked_ones_have_that_of_the_dense_network(task: Task) -> None:
    dense = parameters(MLP(24, 4, 3))
    rows = run_block(SETTING, {**ARMS, "gradual": Gradual(), "longer": Longer()}, [0, 1])
    assert {row.why for row in rows} == {""}
    assert {row.nonzeros for row in rows} == {dense}
    assert all(row.measures["macs_stored"] >= row.measures["macs_nonzeros"] > 0 for row in rows if row.arm != "late")


def test_low_rank_stays_within_the_budget(task: Task) -> None:
    assert parameters(begin(LowRank(), SETTING, task, 0)) <= parameters(MLP(24, 4, 3))


def test_the_smallest_go_and_grow_where_the_gradient_is_largest(task: Task) -> None:
    stack = stack_of(WideSparse(moves=Moves()), task)
    mask, weight = stack.masks_of(0)[0].clone(), stack.weights[0][0].clone()
    stack.dense[0].copy_(torch.rand(stack.dense[0].shape, generator=torch.Generator().manual_seed(1)))
    Moves(fraction=0.5).apply(stack, 0.0, 2, [0])
    new = stack.masks_of(0)[0]
    dropped, grown = mask & ~new, new & ~mask
    assert int(dropped.sum()) == int(grown.sum()) == int(0.5 * mask.sum())
    assert float(weight[dropped].abs().max()) <= float(weight[mask & new].abs().min())
    assert float(stack.dense[0][0][grown].min()) >= float(stack.dense[0][0][~mask & ~new].max())
    assert not bool(stack.weights[0][0][~new | grown].any())


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_fold_has_one_child_for_each_place(task: Task, scope: str) -> None:
    moves = Moves(folded=True, scope=scope)  # type: ignore[arg-type]
    network = begin(WideSparse(), SETTING, task, 0)
    assert isinstance(network, MLP)
    fpe.sparse.masked.set_mask(network.layers[0], "weight", torch.eye(2, dtype=torch.bool).repeat(4, 12))
    mask_all_(network, moves)
    stack = Stack([network], [torch.optim.Adam(network.parameters())], watched=True)
    for step in range(5):
        for gradient in stack.dense.values():
            gradient.normal_(generator=torch.Generator().manual_seed(step))
        moves.apply(stack, step / 10, 2, [0])
        assert int(stack.masks_of(0)[0].view(4, 2, 24).sum(1).max()) == 1
    assert not torch.equal(stack.masks_of(0)[0], torch.eye(2, dtype=torch.bool).repeat(4, 12))


def test_moves_within_all_layers_change_their_shares(task: Task) -> None:
    stack = stack_of(WideSparse(allocation="erk", moves=BOTH), task)
    before = [int(stack.masks_of(layer).sum()) for layer in (0, 1)]
    stack.dense[0].fill_(1.0)
    BOTH.apply(stack, 0.1, 2, [0])
    after = [int(stack.masks_of(layer).sum()) for layer in (0, 1)]
    assert sum(before) == sum(after)
    assert after[0] > before[0], "weights of the classifier moved to the hidden layer"


def test_nothing_moves_outside_of_the_schedule(task: Task) -> None:
    stack = stack_of(WideSparse(moves=Moves()), task)
    before = stack.masks_of(0).clone()
    for done in (0.1, 0.8):
        Moves(begin=0.2, until=0.8).apply(stack, done, 2, [0])
    assert torch.equal(stack.masks_of(0), before)


def test_gradual_pruning_ends_at_the_room_for_hidden_weights() -> None:
    assert Shrink().density(0.05, 0.2) == 1.0
    assert Shrink().density(0.75, 0.2) == Shrink().density(1.0, 0.2) == 0.2
    assert room((8, 24), 3, 2) == 4 * 24 - 4 * 4


def test_densities_of_erk_keep_the_sum_and_no_layer_exceeds_its_size() -> None:
    assert sum(erdos_renyi([(32, 64), (10, 32)], 500)) == 500
    assert erdos_renyi([(100, 100), (2, 3)], 1000) == [994, 6]


def test_masks_that_change_reach_the_network(task: Task) -> None:
    network = begin(WideSparse(moves=Moves()), SETTING, task, 0)
    assert isinstance(network, MLP)
    before = network.layers[0].fpe_mask_weight.clone()
    x, y = task.train[0].unsqueeze(0), task.targets.unsqueeze(0)
    train_together(
        [network],
        [torch.optim.Adam(network.parameters())],
        x,
        y,
        task.loss,
        2,
        after=lambda stack, epoch: Moves().apply(stack, epoch / 4, 2, [0]),
    )
    assert not torch.equal(network.layers[0].fpe_mask_weight, before)
    assert not bool(network.layers[0].weight[~network.layers[0].fpe_mask_weight].any())


def test_cost_counts_passes_bytes_and_traffic() -> None:
    dense, cost = MLP(24, 4, 3), Cost()
    cost.add(dense, 64, SETTING, 0, 2, None, 2)
    assert cost.macs_nonzeros == cost.macs_stored == (2 * 96 + 3 * 12) * 64 * 2
    assert cost.bytes_stored == 16 * parameters(dense)
    assert cost.traffic_stored == 4 * parameters(dense) * 2
    network, folded, wide = MLP(24, 8, 3), Cost(), Cost()
    fpe.sparse.masked.set_mask(network.layers[0], "weight", torch.eye(2, dtype=torch.bool).repeat(4, 12))
    folded.add(network, 64, SETTING, 0, 2, Moves(growth="random", folded=True), 2)
    wide.add(network, 64, SETTING, 0, 2, Moves(growth="random"), 2)
    assert folded.macs_stored == wide.macs_stored
    assert wide.bytes_stored - folded.bytes_stored == 96 * 16 + 96
    rigl = Cost()
    rigl.add(network, 64, SETTING, 0, 2, Moves(), 2)
    assert rigl.macs_nonzeros - wide.macs_nonzeros == 96 * 64 * 2
