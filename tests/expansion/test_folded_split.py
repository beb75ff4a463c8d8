"""Splits by the paper's rule, whose large weights are folded: equal to masked ones bit by bit."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.sparse import dense_weight, layout_of


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
