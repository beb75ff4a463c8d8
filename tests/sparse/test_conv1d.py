"""The ``Conv1D`` of transformers, a linear layer with its weight transposed, takes every layout."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.partitions import Random, Shared
from fpe_lightning.sparse import dense_mask, dense_weight, layout_of, store
from fpe_lightning.sparse.folded import products

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

EXPANSIONS: dict[str, dict[str, Any]] = {
    "folded": {"partition": Random()},
    "folded, shared": {"partition": Shared(groups=4)},
    "folded, partitioned": {"partition": Random(), "outgoing": "partition"},
    "grouped": {"partition": Shared(groups=4), "prune": "columns"},
    "grouped, partitioned": {"partition": Shared(groups=4), "prune": "columns", "outgoing": "partition"},
    "grouped, holes": {"partition": Shared(groups=4), "prune": "total"},
    "semi_structured": {"partition": "semi_structured", "prune": "outgoing"},
}


def pair(transposed: bool) -> nn.Sequential:
    """Two linear layers, or the same weights in layers that have their inputs first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48))
    if transposed:
        for index in (0, 2):
            layer = Conv1D(len(model[index].weight), model[index].weight.shape[1])
            layer.weight.data, layer.bias.data = model[index].weight.data.t().contiguous(), model[index].bias.data
            model[index] = layer
    return model


def trained(model: nn.Module, x: Tensor, expansion: fpe.Expansion) -> tuple[torch.optim.Optimizer, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(4):
        if step == 1:
            report = fpe.expand(model, expansion, sites=["0"], example_inputs=x, optimizer=optimizer)
            assert report.nonzeros_after == report.nonzeros_before == fpe.count_nonzeros(model)
        optimizer.zero_grad()
        out = model(x)
        out.square().mean().backward()
        optimizer.step()
    return optimizer, model(x)


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("name", EXPANSIONS)
def test_it_trains_as_a_linear_layer_in_the_same_layout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 512)
    layout = name.partition(",")[0]
    x, expansion = torch.randn(5, 3, 64), fpe.Expansion(layout=layout, **EXPANSIONS[name])
    linear, ours = pair(False), pair(True)
    (_, expected), (optimizer, found) = trained(linear, x, expansion), trained(ours, x, expansion)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert layout_of(ours[0]) is layout_of(linear[0])
    assert layout_of(ours[2]) is layout_of(linear[2])
    for index in (0, 2):
        torch.testing.assert_close(dense_weight(ours[index]).t(), dense_weight(linear[index]), atol=1e-4, rtol=1e-3)
        mask, other = dense_mask(ours[index]), dense_mask(linear[index])
        assert (mask is None) == (other is None)
        assert mask is None or other is None or torch.equal(mask.t(), other)
    assert type(ours[0]).__name__.endswith("Conv1D")
    fpe.sparse.check_masks(ours)
    # Copies, files and other layouts.
    with torch.no_grad():
        file = io.BytesIO()
        torch.save(ours.state_dict(), file)
        file.seek(0)
        loaded = pair(True)
        fpe.load_expanded_state_dict(loaded, torch.load(file, weights_only=True))
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded):
            assert torch.equal(twin(x), found)
        torch.testing.assert_close(fpe.plain(ours)(x), found, atol=1e-5, rtol=1e-4)
        for index in (0, 2):
            store(ours[index], "masked", optimizers=[optimizer])
        torch.testing.assert_close(ours(x), found, atol=1e-5, rtol=1e-4)
    if layout != "semi_structured" and "holes" not in name:
        again = dataclasses.replace(expansion, outgoing="partition")  # little is left to pay for copies
        fpe.expand(loaded, again, sites=["0"], example_inputs=x)
        assert layout_of(loaded[0]).kind == layout


def test_its_gradients_are_right_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 256)
    model, x = pair(True), torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    fpe.expand(model, fpe.Expansion(layout="folded"), sites=["0"], example_inputs=x.float())
    layer = model[0].double()
    weight = layer.weight.detach().requires_grad_()

    def function(weight: Tensor, x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return out

    assert torch.autograd.gradcheck(function, (weight, x), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (weight, x), fast_mode=True)


def test_half_precision_and_autocast_equal_the_masked_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 256)
    model, x = pair(True), torch.randn(3, 64)
    fpe.expand(model, fpe.Expansion(layout="folded"), sites=["0"], example_inputs=x)
    masked = copy.deepcopy(model)
    store(masked[0], "masked")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x), masked(x), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(model.bfloat16()(x.bfloat16()), masked.bfloat16()(x.bfloat16()), atol=2e-2, rtol=2e-2)


def test_the_default_splits_large_ones_into_blocks_as_linear_layers() -> None:
    x, models = torch.randn(2, 64), []
    for transposed in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 128))
        if transposed:
            for index in (0, 2):
                layer = Conv1D(len(model[index].weight), model[index].weight.shape[1])
                layer.weight.data, layer.bias.data = model[index].weight.data.t().contiguous(), model[index].bias.data
                model[index] = layer
        fpe.expand(model, alpha=2, example_inputs=x)
        models.append(model)
    for index in (0, 2):
        assert torch.equal(models[1][index].weight, models[0][index].weight)
        assert torch.equal(models[1][index].fpe_blocks, models[0][index].fpe_blocks)
    torch.testing.assert_close(models[1](x), models[0](x))
