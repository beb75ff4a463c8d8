"""Arms change a network as they say."""

from __future__ import annotations

import pytest
import torch

import fpe_lightning as fpe
from fpe_lightning.networks import MLP
from fpe_lightning.sparse.model_masks import check_masks
from studies.arms import Again, Arm, Split
from studies.boolean import Regime
from studies.errors import StudyError
from studies.results import described
from studies.splitting import redraw_, split
from studies.study import Study
from studies.training import run_block
from tests.support.arms import ARMS, arms

TASK = Regime().task(0)


def child(arm: Arm, seed: int = 0) -> MLP:
    assert isinstance(arm, Split)
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
    mask = child(ARMS["shared_of_4"]).layers[0].fpe_mask_weight.view(8, 2, 24)
    # The budget takes single weights away, so equal partitions show as halves that never cross.
    assert not bool((mask[0, 0] & mask[1, 1]).any() or (mask[0, 1] & mask[1, 0]).any())
    assert bool((mask[0, 0] & mask[2, 1]).any())


def test_redrawn_weights_stand_under_the_same_masks() -> None:
    kept, redrawn = child(ARMS["random"]), child(ARMS["random_redraw"])
    assert torch.equal(kept.layers[0].fpe_mask_weight, redrawn.layers[0].fpe_mask_weight)
    assert not torch.equal(kept.layers[0].weight, redrawn.layers[0].weight)
    check_masks(redrawn)
    dense = torch.nn.Linear(4, 2)
    redraw_(dense, torch.Generator().manual_seed(0))
    assert float(dense.weight.detach().abs().max()) <= 0.5


def test_a_run_fills_in_alpha_and_seed_and_nothing_else() -> None:
    arm = Split(fpe.Paper(partition="shared", prune="incoming"), alpha=3)
    assert arm.expansion_of(2, 7) == fpe.Paper(partition="shared", prune="incoming", alpha=3, seed=7)
    assert Split(fpe.Paper(prune="outgoing")).expansion_of(5, 1) == fpe.Paper(prune="outgoing", alpha=5, seed=1)
    for own in ({"alpha": 3}, {"seed": 1}):
        with pytest.raises(ValueError, match=f"The expansion of an arm leaves `{next(iter(own))}` to the run"):
            Split(fpe.Paper(**own))
    with pytest.raises(
        StudyError, match="Arm 'a' cannot be in setting 'S': SemiStructured always has alpha=2, found 4"
    ):
        Study({"S": Regime(alpha=4)}, {"a": Split(fpe.SemiStructured())}).check()


def test_an_arm_is_described_as_a_config_spells_it() -> None:
    found = described(ARMS["shared_of_4"])
    assert found["class_path"] == "Split"
    assert found["init_args"]["expansion"]["init_args"]["partition"] == {
        "class_path": "Shared",
        "init_args": {"groups": 4},
    }


def test_an_arm_that_splits_twice_keeps_the_budget_and_ends_wider() -> None:
    regime = Regime(epochs=6, samples=64, hidden=1)
    rows = run_block(regime, arms("dense", "random_then_3"), [0])
    assert [row.status for row in rows] == ["done", "done"]
    assert rows[0].nonzeros == rows[1].nonzeros
    with pytest.raises(StudyError, match="in setting 'A': it splits again at epoch 3, but first at 4 of 6"):
        Study({"A": regime}, {"late": Split(at=4, then=Again(3))}).check()
    with pytest.raises(StudyError, match="in setting 'A': it refits one hidden layer, but there are several"):
        Study({"A": Regime(hidden=[4, 4])}, arms("random_then_3")).check()


@pytest.mark.parametrize("arm", ["random_global_at_1", "interaction_global_at_1"])
def test_hidden_layers_are_pruned_in_one_order_where_the_arm_says_so(arm: str) -> None:
    regime = Regime(hidden=[4, 4], epochs=4, samples=64)
    rows = run_block(regime, arms("dense", arm), [0])
    assert [row.status for row in rows] == ["done", "done"]
    assert rows[0].nonzeros == rows[1].nonzeros
