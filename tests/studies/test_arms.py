"""What the arms do to a network."""

from __future__ import annotations

import pytest
import torch

import fpe_lightning as fpe
from fpe_lightning.networks import MLP
from fpe_lightning.sparse.model_masks import check_masks
from studies.arms import ARMS, Arm, arm_named, arms_named
from studies.boolean import Regime
from studies.errors import StudyError
from studies.splitting import redraw_, split
from studies.study import Study
from studies.training import run_block

TASK = Regime().task(0)


def child(arm: Arm, seed: int = 0) -> MLP:
    torch.manual_seed(0)
    network = MLP(24, 8, 1)
    optimizer = torch.optim.Adam(network.parameters())
    split(arm, network, optimizer, TASK, fpe.find_sites(network, TASK.train[0][:2]), 2, seed)
    return network


def test_interaction_keeps_clauses_together_and_coactivation_uses_no_targets() -> None:
    mask = child(ARMS["interaction"]).layers[0].fpe_mask_weight
    for group in TASK.groups:
        reached = [mask[row, list(group)].sum() for row in range(16)]
        # A neuron's children may have lost weights to the budget, but no clause reaches both of them.
        assert all(min(first, second) == 0 for first, second in zip(reached[::2], reached[1::2], strict=True))
    assert not torch.equal(mask, child(ARMS["coactivation"]).layers[0].fpe_mask_weight)


def test_groups_of_neurons_share_a_partition() -> None:
    mask = child(arm_named("shared_of_4")).layers[0].fpe_mask_weight.view(8, 2, 24)
    # The budget takes single weights away, so equal partitions show as halves that never cross.
    assert not bool((mask[0, 0] & mask[1, 1]).any() or (mask[0, 1] & mask[1, 0]).any())
    assert bool((mask[0, 0] & mask[2, 1]).any())


def test_redrawn_weights_stand_under_the_same_masks() -> None:
    kept, redrawn = child(ARMS["random"]), child(arm_named("random_redraw"))
    assert torch.equal(kept.layers[0].fpe_mask_weight, redrawn.layers[0].fpe_mask_weight)
    assert not torch.equal(kept.layers[0].weight, redrawn.layers[0].weight)
    check_masks(redrawn)
    dense = torch.nn.Linear(4, 2)
    redraw_(dense, torch.Generator().manual_seed(0))
    assert float(dense.weight.detach().abs().max()) <= 0.5


def test_an_unknown_arm_is_refused_with_the_one_meant() -> None:
    with pytest.raises(StudyError, match=r"Unknown arm 'widesparse'\. Did you mean 'wide_sparse'\? Known: dense, "):
        arms_named(["dense", "widesparse"])


def test_a_name_of_an_arm_can_say_how_it_splits() -> None:
    assert arm_named("shared_incoming_redraw_at_12") == Arm("split", "shared", "incoming", split=12, redraw=True)
    twice = arm_named("random_incoming_x3_at_1_then_5")
    assert twice == Arm("split", "random", "incoming", split=1, alpha=3, again=5)
    with pytest.raises(StudyError, match="Arm 'dense_at_3' cannot be: 'dense' does not split"):
        arm_named("dense_at_3")
    with pytest.raises(StudyError, match=r"Did you mean 'random'\? Known: .*; those that split may end in _incoming, "):
        arm_named("randon_at_3")


def test_an_arm_that_splits_twice_keeps_the_budget_and_ends_wider() -> None:
    regime = Regime(epochs=6, samples=64, hidden=1)
    rows = run_block(regime, arms_named(["dense", "random_x2_at_1_then_3"]), [0])
    assert [row.status for row in rows] == ["done", "done"]
    assert rows[0].nonzeros == rows[1].nonzeros
    with pytest.raises(StudyError, match="splits again at epoch 3, but in setting 'A' it splits first at 4 of 6"):
        Study({"A": regime}, ["random_x2_at_4_then_3"]).check()
    with pytest.raises(StudyError, match="refits one hidden layer, but setting 'A' has several"):
        Study({"A": Regime(hidden=[4, 4])}, ["random_x2_at_1_then_3"]).check()


def test_hidden_layers_make_room_together_where_the_arm_says_so() -> None:
    regime = Regime(hidden=[4, 4], epochs=4, samples=64)
    rows = run_block(regime, arms_named(["dense", "random_global_at_1"]), [0])
    assert [row.status for row in rows] == ["done", "done"]
    assert rows[0].nonzeros == rows[1].nonzeros
    with pytest.raises(StudyError, match="cannot make room together; drop `_global`"):
        Study({"A": regime}, ["interaction_global_at_1"]).check()
