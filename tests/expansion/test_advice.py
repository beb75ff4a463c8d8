"""The rule by which splits warn."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.advise import main
from fpe_lightning.expansion.advice import tends_to_lose

CLASSES = "--module.out_features=94 --input_shape=[1,512]"


@pytest.mark.parametrize(
    ("inputs", "copies", "alpha", "loses"),
    [
        (64, 4, 4, False),
        (63, 4, 4, True),  # a child gets fewer than 16 inputs
        (400, 101, 4, True),  # 303 copies of each neuron, and 300 are the most
        (400, 100, 4, False),
        (20, 2, 4, False),  # one output: five inputs a child are enough
        (19, 2, 4, True),
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


def deep() -> nn.Sequential:
    """A site that gains from a split, one whose children would get four inputs, and a wide one."""
    sizes = (256, 8, 64, 10)
    layers = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in itertools.pairwise(sizes)]
    return nn.Sequential(*layers)


def test_auto_splits_what_gains_and_leaves_the_rest() -> None:
    model = deep()
    found = fpe.advise_sites(model, torch.zeros(1, 256))
    assert [(each.site.name, each.alpha, each.rewire) for each in found] == [("0.0", 2, True), ("1.0", 1, False)]
    before = fpe.count_nonzeros(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fpe.ExpansionWarning)  # what it chooses does not warn
        report = fpe.expand(model, alpha="auto", seed=3, example_inputs=torch.zeros(1, 256))
    assert [(site.name, site.alpha) for site in report.sites] == [("0.0", 2)]
    assert fpe.count_nonzeros(model) == before


def test_auto_says_why_it_splits_nothing_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 26))
    with pytest.raises(ValueError, match=r"splits nothing here. 0: alpha=1.*8 of 16 inputs, and each costs 27 copies"):
        fpe.expand(model, alpha="auto", example_inputs=torch.zeros(1, 16))
    assert model[0].weight.shape == (8, 16)


def test_memory_is_that_of_the_layouts() -> None:
    (found,) = fpe.advise_sites(nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 94)), torch.zeros(1, 512))
    assert (found.alpha, found.inputs, found.copies) == (4, 512, 95)
    assert found.masked == pytest.approx((4 * 512 * 1.25 + 4 * 94) / 606)
    assert found.folded == pytest.approx((512 * 1.25 + 4 * 94) / 606)


def test_the_command_prints_a_line_for_each_width(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--module=fpe_lightning.networks.MLP", *f"--module.in_features=512 --module.hidden=8 {CLASSES}".split()])
    assert capsys.readouterr().out.startswith("layers.0: alpha=4, and rewire; memory x")
    with pytest.raises(SystemExit, match="error: "):
        main(["--module=fpe_lightning.networks.MLP", *f"--module.in_features=51 --module.hidden=8 {CLASSES}".split()])
