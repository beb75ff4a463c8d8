"""Splits by the paper's rule, whose large weights are folded: equal to masked ones bit by bit."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.expansion import expand as _
from fpe_lightning.expansion import folded
from fpe_lightning.pruning import PruningName
from fpe_lightning.sparse import dense_weight, layout_of, store

EXPAND = sys.modules[_.__module__]


@pytest.mark.parametrize(
    ("expansion", "folded"),
    [
        (fpe.Paper(), [True, False]),
        (fpe.Paper(outgoing="partition"), [True, True]),
        (fpe.Paper(layout="masked"), [False, False]),
        (fpe.Expansion(layout="by_shape", partition="overlapping"), [False, False]),
        ({"0": fpe.ByShape()}, [True, False]),
    ],
    ids=["the paper's rule", "partitioned outgoing weights", "masked by name", "overlapping", "by shape"],
)
def test_the_papers_rule_folds_large_weights_and_never_decides_which_are_kept(
    expansion: Any, folded: list[bool]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 520), nn.ReLU(), nn.Linear(520, 512))
    twin, x = copy.deepcopy(model), torch.randn(2, 512)
    for each in (model, twin):
        optimizer = torch.optim.AdamW(each.parameters())
        each(x).square().sum().backward()
        optimizer.step()
        own = (
            expansion
            if each is model
            else dataclasses.replace(fpe.Paper() if isinstance(expansion, dict) else expansion, layout="masked")
        )
        report = fpe.expand(each, own, example_inputs=x, optimizer=optimizer)
        assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(each)
    assert [layout_of(model[index]).kind == "folded" for index in (0, 2)] == folded
    for index in (0, 2):
        assert torch.equal(dense_weight(model[index]), dense_weight(twin[index]))
    assert all(layout_of(layer).kind == "masked" for layer in narrow())


def narrow() -> nn.Sequential:
    """A net below the size from which folding pays, split by the paper's rule."""
    model = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    fpe.expand(model, fpe.Paper(), example_inputs=torch.zeros(1, 512))
    return model


def gated() -> nn.Module:
    """Two layers of equally many inputs compute the same units, and one reads them."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.value, self.out = nn.Linear(24, 16), nn.Linear(24, 16, bias=False), nn.Linear(16, 12)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(torch.sigmoid(self.gate(x)) * self.value(x))
            return out

    return Gated()


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))


@pytest.mark.parametrize("values", ["drawn", "equal"])
@pytest.mark.parametrize("prune", ["total", "incoming", "outgoing", "global"])
@pytest.mark.parametrize("outgoing", ["copy", "partition"])
@pytest.mark.parametrize("network", [gated, deep])
def test_a_split_in_place_equals_one_by_way_of_the_wide_weight(
    network: Callable[[], nn.Module],
    outgoing: Literal["copy", "partition"],
    prune: PruningName,
    values: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, gradients, moments and reports are those of the masked layout, whose wide weight is made; ties too."""
    monkeypatch.setattr(folded, "PIECE", 64)
    x, results = torch.randn(4, 24, generator=torch.Generator().manual_seed(1)), []
    for layout, straight in (("folded", True), ("folded", False), ("masked", True)):
        torch.manual_seed(0)
        model = network()
        if values == "equal":
            for parameter in model.parameters():
                parameter.data = parameter.data.sign() / 4
        optimizer = torch.optim.AdamW(model.parameters())
        model(x).square().mean().backward()
        optimizer.step()
        expansion = fpe.Expansion(alpha=2, layout=layout, outgoing=outgoing, prune=prune, seed=3)
        with monkeypatch.context() as patch:
            if not straight:
                patch.setattr(EXPAND, "fits_folded", lambda *_: set())
            report = fpe.expand(model, expansion, optimizer=optimizer, example_inputs=x)
        before = {name: parameter.numel() for name, parameter in model.named_parameters()}
        for layer in model.modules():
            store(layer, "masked", optimizers=[optimizer]) if isinstance(layer, nn.Linear) else None
        tensors = {}
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            tensors[name] = [parameter, parameter.grad, moments["exp_avg"], moments["exp_avg_sq"]]
        results.append((tensors, dataclasses.replace(report, layouts={}), before))
    for tensors, report, sizes in results[:2]:
        for name, found in tensors.items():
            for one, other in zip(found, results[2][0][name], strict=True):
                assert torch.equal(one, other), name
        assert report == results[2][1]
        assert sizes == results[0][2]


def test_a_split_in_place_keeps_the_parameter_and_drops_its_state_where_asked() -> None:
    torch.manual_seed(0)
    model, x = deep(), torch.randn(4, 24)
    weight, optimizer = model[0].weight, torch.optim.AdamW(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    expansion = fpe.Expansion(layout="folded", optimizer_state="reset", prune="incoming")
    fpe.expand(model, expansion, sites=["0"], optimizer=optimizer, example_inputs=x)
    assert model[0].weight is weight
    assert weight not in optimizer.state
    model(x).square().mean().backward()
    optimizer.step()
    fpe.sparse.check_masks(model)


def test_what_is_refused_leaves_weights_as_they_were() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 40)), torch.randn(4, 4)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="have to go"):
        fpe.expand(model, fpe.Expansion(layout="folded", prune="incoming"), example_inputs=x)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(state)
