"""Weights change their storage with gradients and optimizer state, and come back as the same objects."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from fpe_lightning.sparse import group, set_mask, store
from fpe_lightning.sparse.convert import stored_masked
from fpe_lightning.sparse.grouped.blocks import expand_blocks, unpack

INPUTS = torch.tensor([[True, True, False, False], [False, False, True, True]])


def trained(
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    set_mask(model[0], "weight", expand_blocks(INPUTS, 6))
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "optimizer_class", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_training_goes_on_as_if_nothing_happened(optimizer_class: type[torch.optim.Optimizer]) -> None:
    model, optimizer = trained(optimizer_class)
    reference, reference_optimizer = trained(optimizer_class)
    group(model[0], INPUTS, [optimizer])
    for _ in range(3):
        step(model, optimizer)
        step(reference, reference_optimizer)
    store(model[0], optimizers=[optimizer])
    step(model, optimizer)
    step(reference, reference_optimizer)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        state, expected = optimizer.state[ours], reference_optimizer.state[theirs]
        assert state.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(state[key], expected[key])


def test_state_and_gradient_are_as_small_as_the_nonzeros() -> None:
    model, optimizer = trained()
    gradient = model[0].weight.grad.clone()
    group(model[0], INPUTS, [optimizer])
    weight = model[0].weight
    assert weight.grad.shape == optimizer.state[weight]["exp_avg"].shape == (12, 1)
    assert torch.equal(unpack(weight.grad, INPUTS, gradient.shape), gradient)
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [p.shape for p in model.parameters()]


def test_state_of_another_shape_is_refused_and_nothing_changes() -> None:
    model, _ = trained()
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    before, state = model[0].weight, optimizer.state[model[0].weight]
    with pytest.raises(
        ValueError, match=r"state `row_var` of shape \(6, 1\) belongs to a weight of shape \(6, 4\) as a whole"
    ):
        group(model[0], INPUTS, [optimizer])
    assert model[0].weight is before
    assert optimizer.state[before] is state


@pytest.mark.parametrize("fails", [False, True])
def test_in_between_layers_are_masked_and_afterwards_the_same_objects(fails: bool) -> None:
    model, optimizer = trained()
    group(model[0], INPUTS, [optimizer])
    weight, state = model[0].weight, optimizer.state[model[0].weight]
    before = copy.deepcopy(model.state_dict())
    with contextlib.suppress(InterruptedError), stored_masked(model, [optimizer]):
        assert model[0].weight.shape == (6, 4)
        assert optimizer.state[model[0].weight]["exp_avg"].shape == (6, 4)
        assert optimizer.param_groups[0]["params"][0] is model[0].weight
        if fails:
            raise InterruptedError
    assert model[0].weight is weight is optimizer.param_groups[0]["params"][0]
    assert optimizer.state[weight] is state
    assert set(optimizer.state) == set(model.parameters())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_a_weight_that_was_replaced_in_between_stays() -> None:
    model, optimizer = trained()
    group(model[0], INPUTS, [optimizer])
    with stored_masked(model, [optimizer]):
        replacement = model[0].weight = nn.Parameter(torch.zeros(6, 4))
    assert model[0].weight is replacement
