"""Partitions from data keep inputs together that matter together."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data import BatchLoader
from fpe_lightning.data.boolean import dnf_task
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP
from fpe_lightning.partitions import Affinity, Interaction, input_affinity


@pytest.mark.parametrize("seed", range(3))
def test_the_clauses_of_a_formula_are_found_without_being_named(seed: int) -> None:
    task = dnf_task(seed=seed)
    inputs, truth = task.train
    partition = Affinity(input_affinity(inputs, truth.float().unsqueeze(1) - 0.5))
    child = partition(torch.ones(8, 24, 1), torch.ones(8, 24, dtype=torch.bool), 2, torch.Generator().manual_seed(0))
    assert all(len(child[0, list(group)].unique()) == 1 for group in task.groups)


@given(st.integers(2, 5), st.integers(5, 17), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_children_are_balanced_to_within_one_input(alpha: int, inputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    affinity = torch.rand(inputs, inputs, generator=generator)
    alive = torch.ones(3, inputs, dtype=torch.bool)
    child = Affinity(affinity + affinity.T)(torch.ones(3, inputs, 1), alive, alpha, generator)
    sizes = child[0].bincount(minlength=alpha)
    assert int(sizes.max() - sizes.min()) <= 1
    assert bool((child == child[0]).all())


def test_it_is_deterministic_and_expand_takes_it() -> None:
    affinity = torch.rand(24, 24, generator=torch.Generator().manual_seed(0)).triu(1)
    masks = []
    for _ in range(2):
        network = MLP(24, 4, 1)
        fpe.expand(
            network,
            fpe.Expansion(partition=Affinity(affinity + affinity.T)),
            example_inputs=torch.zeros(2, 24),
        )
        masks.append(network.layers[0].fpe_mask_weight.any(0))
    assert torch.equal(masks[0], masks[1])


def test_a_few_random_signs_stand_in_for_many_outputs() -> None:
    task = dnf_task(clauses=4, literals=2, inputs=8, train=1024)
    inputs, truth = task.train
    generator = torch.Generator().manual_seed(0)
    # Most outputs are noise; three know the formula.
    residuals = 0.1 * torch.randn(1024, 40, generator=generator)
    residuals[:, :3] += truth.float().unsqueeze(1) - 0.5
    exact = input_affinity(inputs, residuals, projections=40)
    drawn = torch.stack([input_affinity(inputs, residuals, projections=8, seed=seed) for seed in range(60)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.square().mean(0).sqrt(), exact, rtol=0.15, atol=1e-3)


def test_a_callback_takes_the_partition_of_training_samples() -> None:
    task = dnf_task(seed=0)
    callback = ExpansionCallback(
        fpe.Expansion(alpha=2, partition=Interaction().fit(*task.train), prune="incoming"), epoch=1
    )
    module = Classifier(MLP(24, 8, 1), task="binary")
    trainer = L.Trainer(
        max_epochs=2,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, BatchLoader(*task.train, batch_size=1024))
    mask = module.network.layers[0].fpe_mask_weight
    for group in task.groups:
        reached = mask[:, list(group)].sum(1).view(8, 2)
        assert bool((reached.min(1).values == 0).all())  # no clause reaches both children of a neuron


def test_bad_input_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"class numbers, bool or integer, one for each of the 3 samples; found torch.float32 \(3, 1\)"
    ):
        Interaction().fit(torch.ones(3, 2), torch.ones(3, 1))
    with pytest.raises(
        ValueError, match=r"Samples are floating-point numbers \(n, inputs\), found torch.float32 \(3, 2, 1\)"
    ):
        Interaction().fit(torch.ones(3, 2, 1), torch.ones(3).long())
    with pytest.raises(ValueError, match=r"3 samples of inputs do not fit 2 rows"):
        input_affinity(torch.ones(3, 2), torch.ones(2, 1))
    with pytest.raises(ValueError, match="NaN or infinity"):
        input_affinity(torch.full((3, 2), float("nan")), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"finite symmetric .* found shape \(2, 3\)"):
        Affinity(torch.ones(2, 3))
    with pytest.raises(ValueError, match="finite symmetric"):
        Affinity(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    alive = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="of 4 inputs, but the layer has 5"):
        Affinity(torch.ones(4, 4))(torch.ones(2, 5, 1), alive, 2, torch.Generator())
