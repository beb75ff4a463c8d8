"""The rule by which splits warn."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.expansion.advice import tends_to_lose


@pytest.mark.parametrize(
    ("inputs", "copies", "alpha", "loses"),
    [
        (64, 4, 4, False),
        (63, 4, 4, True),  # a child gets fewer than 16 inputs
        (400, 101, 4, True),  # 303 copies of each neuron, and 300 are the most
        (400, 100, 4, False),
        (24, 2, 4, False),  # one output: six inputs a child are enough
        (23, 2, 4, True),
    ],
)
def test_the_rule_has_two_bounds(inputs: int, copies: int, alpha: int, loses: bool) -> None:
    assert tends_to_lose(inputs, copies, alpha) is loses


@pytest.mark.parametrize("prune", ["total", "incoming", "global"])
@pytest.mark.parametrize("inputs", [31, 32])
def test_every_pruning_rule_warns_by_it(prune: str, inputs: int) -> None:
    model = nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fpe.expand(model, fpe.Paper(alpha=2, prune=prune), example_inputs=torch.zeros(1, inputs))
    found = [each for each in caught if issubclass(each.category, fpe.ExpansionWarning)]
    assert len(found) == (inputs < 32)
