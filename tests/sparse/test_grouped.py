"""Grouped layers equal the masked ones they are made of, and survive what layers go through."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fpe_lightning.sparse import (
    GroupedConv2d,
    GroupedLinear,
    check_masks,
    dense_mask,
    dense_weight,
    group,
    set_mask,
    store,
)
from fpe_lightning.sparse.grouped.blocks import expand_blocks
from fpe_lightning.sparse.grouped.layout import GROUPED, structure_of

INPUTS = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0]], dtype=torch.bool)
LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(6, 7), (4, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 7, 3, padding=1, stride=2), (4, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 9, 3, padding="same", dilation=2), (4, 6, 5, 5)),
    "conv2d circular": (lambda: nn.Conv2d(6, 7, 3, padding=1, padding_mode="circular", bias=False), (4, 6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(6, 7, 2), (2, 6, 3, 3, 3)),
}


def masked_and_grouped(kind: str, holes: bool = False) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    masked = make()
    weight = masked.weight
    flat = expand_blocks(INPUTS, len(weight))
    mask = flat.view(*flat.shape, *[1] * (weight.dim() - 2)).expand(weight.shape).clone()
    if holes:
        mask &= torch.rand(weight.shape) < 0.8
    set_mask(masked, "weight", mask)
    grouped = copy.deepcopy(masked)
    group(grouped, INPUTS)
    return masked, grouped, torch.randn(shape)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_equal_the_masked_layer(kind: str, holes: bool) -> None:
    masked, grouped, x = masked_and_grouped(kind, holes)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, reference = grouped(ours), masked(theirs)
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    reference.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    ungrouped = copy.deepcopy(grouped)
    ungrouped.weight.grad = grouped.weight.grad
    store(ungrouped)
    torch.testing.assert_close(ungrouped.weight.grad, masked.weight.grad, atol=1e-4, rtol=1e-4)
    if len(x) and kind != "linear":
        torch.testing.assert_close(grouped(x[0]), reference[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (1, 6), (6,)])
def test_outputs_are_no_views_that_a_change_in_place_would_part_from_hooks(shape: tuple[int, ...]) -> None:
    masked, grouped, _ = masked_and_grouped("linear")
    x = torch.randn(shape, requires_grad=True)
    assert not grouped(x)._is_view()
    ours, theirs = (torch.autograd.grad(layer(x).relu_().sum(), x)[0] for layer in (grouped, masked))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_only_the_nonzeros_are_stored(kind: str) -> None:
    masked, grouped, _ = masked_and_grouped(kind)
    assert grouped.weight.shape == (int(masked.fpe_mask_weight.sum()), 1)
    assert torch.equal(dense_weight(grouped), masked.weight)
    mask = dense_mask(grouped)
    assert mask is not None
    assert torch.equal(mask, masked.fpe_mask_weight)


@pytest.mark.parametrize("holes", [False, True])
def test_ungroup_undoes_group_exactly(holes: bool) -> None:
    masked, grouped, _ = masked_and_grouped("conv2d", holes)
    store(grouped)
    assert type(grouped) is type(masked)
    assert list(grouped.state_dict()) == list(masked.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(grouped.state_dict().values(), masked.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_copies_files_and_dtypes(kind: str, holes: bool) -> None:
    _, grouped, x = masked_and_grouped(kind, holes)
    expected = grouped(x)
    assert torch.equal(copy.deepcopy(grouped)(x), expected)
    file = io.BytesIO()
    torch.save(grouped, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    torch.testing.assert_close(copy.deepcopy(grouped).double()(x.double()).float(), expected, atol=1e-5, rtol=1e-5)
    assert grouped.to("meta").weight.device.type == "meta"


def test_holes_in_blocks_stay_zero_in_training() -> None:
    _, grouped, x = masked_and_grouped("linear", holes=True)
    optimizer = torch.optim.AdamW(grouped.parameters(), lr=0.1, weight_decay=0.1)
    nonzeros = int(grouped.weight.count_nonzero())
    for _ in range(3):
        optimizer.zero_grad()
        grouped(x).square().sum().backward()
        optimizer.step()
    check_masks(grouped)
    assert int(grouped.weight.count_nonzero()) == nonzeros


def test_a_structure_that_is_loaded_is_computed_with() -> None:
    x = torch.randn(4, 6)
    other = nn.Linear(6, 6)
    first, second = INPUTS[:2], INPUTS[:2].flip(0)
    states = []
    for inputs in (first, second):
        layer = copy.deepcopy(other)
        set_mask(layer, "weight", expand_blocks(inputs, 6))
        group(layer, inputs)
        states.append((layer, layer.state_dict(), layer(x)))
    states[0][0].load_state_dict(states[1][1])
    assert torch.equal(states[0][0](x), states[1][2])


def test_repr_and_classes() -> None:
    assert repr(masked_and_grouped("linear")[1]) == "GroupedLinear(in_features=6, out_features=7, bias=True, blocks=3)"
    assert isinstance(masked_and_grouped("linear")[1], GroupedLinear)
    assert isinstance(masked_and_grouped("conv2d", holes=True)[1], GroupedConv2d)


def test_what_cannot_be_grouped_says_why() -> None:
    assert "no grouped form of Bilinear" in str(GROUPED.cannot_hold(nn.Bilinear(2, 2, 2)))
    assert "already has 2 groups" in str(GROUPED.cannot_hold(nn.Conv2d(4, 4, 1, groups=2)))
    assert "no grouped form of ParametrizedLinear" in str(
        GROUPED.cannot_hold(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    )
    layer = nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match="cannot be stored in blocks: there is no grouped form of Bilinear"):
        group(layer, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="use the masked layout"):
        store(layer, "grouped")
    assert structure_of(layer) is None


def test_a_structure_that_misses_a_weight_is_refused_and_nothing_changes() -> None:
    layer = nn.Linear(6, 6)
    set_mask(layer, "weight", torch.ones(6, 6, dtype=torch.bool))
    before = layer.weight
    with pytest.raises(ValueError, match="holds 18 of the 36 weights that may be non-zero"):
        group(layer, INPUTS)
    assert layer.weight is before
