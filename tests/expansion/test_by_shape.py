"""Split by shape: large layers into blocks, all others as the paper says."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.expansion import BaseExpansion
from fpe_lightning.partitions import Shared
from fpe_lightning.sparse import autotune, check_masks, dense_mask, dense_weight, structure_of


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def same(model: nn.Module, other: nn.Module) -> bool:
    state, others = model.state_dict(), other.state_dict()
    return list(state) == list(others) and all(torch.equal(state[key], others[key]) for key in state)


def split(model: nn.Sequential, expansion: BaseExpansion | None = None, **options: Any) -> nn.Sequential:
    report = fpe.expand(model, expansion, example_inputs=torch.zeros(2, model[0].in_features), **options)
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    return model


@pytest.mark.parametrize(("outputs", "outgoing", "grouped"), [(10, "copy", 1), (128, "partition", 2)])
@pytest.mark.parametrize("alpha", [2, 4])
def test_a_large_pair_is_stored_at_the_size_of_its_non_zeros(
    alpha: int, outputs: int, outgoing: str, grouped: int
) -> None:
    model = split(mlp(128, 1024, outputs), fpe.ByShape(alpha=alpha))
    fields: dict[str, Any] = {"alpha": alpha, "prune": "columns", "outgoing": outgoing, "layout": "grouped"}
    explicit = fpe.Expansion(partition=Shared(groups=16), **fields)
    assert same(model, split(mlp(128, 1024, outputs), explicit))
    assert same(model, split(mlp(128, 1024, outputs), fpe.Blocks(alpha=alpha, outgoing=outgoing)))
    assert sum(structure_of(module) is not None for module in model) == grouped
    stored = sum(parameter.numel() for parameter in model.parameters())
    assert fpe.count_nonzeros(model) <= stored < 1.02 * fpe.count_nonzeros(model)


@pytest.mark.parametrize(
    "widths", [(64, 256, 10), (64, 1032, 10), (6, 1024, 10)], ids=["narrow", "uneven", "few inputs"]
)
def test_all_others_are_split_by_the_rule_of_the_paper(widths: tuple[int, ...]) -> None:
    assert same(split(mlp(*widths), fpe.ByShape()), split(mlp(*widths), fpe.Paper()))


def test_a_weight_between_two_hidden_layers_is_masked() -> None:
    model = split(mlp(64, 1024, 1024, 10), fpe.ByShape())
    assert [structure_of(module) is not None for module in model] == [True, False, False, False, False]


@pytest.mark.parametrize(("inputs", "outputs", "alpha"), [(64, 10, 2), (32, 40, 2), (32, 40, 4)])
@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
def test_it_is_split_again_until_no_inputs_are_left(inputs: int, outputs: int, alpha: int) -> None:
    model = mlp(inputs, 1024, outputs)
    optimizer = torch.optim.AdamW(model.parameters())
    message, stored = "", []
    while not message:
        model(torch.randn(4, inputs)).square().sum().backward()
        optimizer.step()
        before, held = copy.deepcopy(model.state_dict()), list(model.parameters())
        try:
            split(model, fpe.ByShape(alpha=alpha), optimizer=optimizer, sites="0")
        except ValueError as error:
            message = str(error)
        else:
            check_masks(model)
            stored.append("masked" if structure_of(model[0]) is None else "grouped")
    assert "some child would inherit nothing" in message or "too little is left" in message
    # As long as blocks are large and each child keeps inputs; then the rule of the paper, and then a sentence.
    assert stored[0] == "grouped"
    assert stored == sorted(stored)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(now is then for now, then in zip(model.parameters(), held, strict=True))


def test_what_was_split_by_the_rule_of_the_paper_is_split_by_it_again() -> None:
    models = [split(mlp(64, 512, 10), fpe.Paper()) for _ in range(2)]
    assert models[0][0].out_features == 1024
    assert same(split(models[0], fpe.ByShape()), split(models[1], fpe.Paper()))


def test_more_blocks_than_pay_are_not_made() -> None:
    model = split(mlp(256, 1024, 2), fpe.ByShape(alpha=16))
    assert same(model, split(mlp(256, 1024, 2), fpe.Paper(alpha=16)))


@pytest.mark.parametrize("name", ["weight_inputs", "plan"])
def test_a_users_own_attributes_stay_next_to_blocks(name: str) -> None:
    model = mlp(64, 1024, 10)
    setattr(model[0], name, "mine")
    fpe.expand(model, alpha=2, example_inputs=torch.zeros(2, 64))
    assert structure_of(model[0]) is not None
    assert getattr(model[0], name) == "mine"


def test_convolutions_are_split_by_the_rule_of_the_paper() -> None:
    def conv() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(64, 1024, 1), nn.ReLU(), nn.Conv2d(1024, 4, 1))

    models = [conv(), conv()]
    for model, expansion in zip(models, (fpe.ByShape(), fpe.Paper()), strict=True):
        fpe.expand(model, expansion, example_inputs=torch.zeros(2, 64, 3, 3))
    assert same(*models)


def test_state_that_blocks_cannot_hold_leaves_the_weight_masked(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(64, 1024, 10)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    with caplog.at_level(logging.INFO, logger="fpe_lightning"):
        split(model, fpe.ByShape(), optimizer=optimizer)
    assert structure_of(model[0]) is None
    assert "keeps state of rows and columns, which a packed weight does not have" in caplog.text


@pytest.mark.parametrize("layout", ["grouped", "masked", "semi_structured", "by_shpae"])
def test_it_decides_on_the_layout_itself(layout: Any) -> None:
    message = f"ByShape chooses the layout of each site itself, found layout='{layout}'; use fpe.Expansion or"
    with pytest.raises(ValueError, match=message):
        fpe.ByShape(layout=layout)


def test_it_has_no_other_choice_to_make() -> None:
    names = [field.name for field in dataclasses.fields(fpe.ByShape)]
    assert names == ["alpha", "optimizer_state", "seed", "layout"], "partition and pruning are those of each site"


@pytest.mark.parametrize("widths", [(128, 1024, 10), (64, 256, 10)])
def test_it_is_the_default(widths: tuple[int, ...]) -> None:
    assert same(split(mlp(*widths)), split(mlp(*widths), fpe.ByShape()))
    assert ExpansionCallback(step=1).expansion == fpe.ByShape()
    assert ExpansionCallback(alpha=3, seed=4, step=1).expansion == fpe.ByShape(alpha=3, seed=4)


@pytest.mark.parametrize("fields", [{"prune": "incoming"}, {"layout": "masked"}, {"prune": "total"}])
def test_one_field_alone_goes_with_the_rule_of_the_paper(fields: dict[str, Any]) -> None:
    asked = {"partition": "random", "prune": "total", "layout": "masked", **fields}
    assert same(split(mlp(64, 1024, 10), fpe.Expansion(**fields)), split(mlp(64, 1024, 10), fpe.Paper(**asked)))
    assert vars(fpe.Expansion(**fields)) == vars(fpe.Expansion(**asked))


def test_auto_times_how_the_blocks_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("grouped", "masked"):
        seconds = {"masked": 2.0, "grouped": 2.0, fastest: 1.0}
        monkeypatch.setattr(autotune, "measure", lambda layers, *_, seconds=seconds: {n: seconds[n] for n in layers})
        monkeypatch.setattr(autotune.ChoiceFile, "load", lambda _: {})
        model, blocks = split(mlp(64, 1024, 10), fpe.ByShape(layout="auto")), split(mlp(64, 1024, 10))
        assert (structure_of(model[0]) is None) == (fastest == "masked")
        assert torch.equal(dense_weight(model[0]), dense_weight(blocks[0]))
        assert torch.equal(dense_mask(model[0]), dense_mask(blocks[0]))
    narrow = split(mlp(64, 256, 10), fpe.ByShape(layout="auto"))
    assert same(narrow, split(mlp(64, 256, 10), fpe.Paper()))


class Functional(nn.Module):
    """Reads the weights of its layers without calling them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x, self.up.weight, self.up.bias))
        return F.linear(hidden, self.down.weight, self.down.bias)


def test_weights_that_are_read_without_their_layer_stay_masked() -> None:
    models = [Functional(1024), Functional(1024)]
    for model, expansion in zip(models, (fpe.ByShape(), fpe.Paper()), strict=True):
        fpe.expand(model, expansion, example_inputs=torch.zeros(2, 64))
        model(torch.zeros(2, 64))
    assert same(*models)
    with pytest.raises(ValueError, match="does not call its layer with an input"):
        fpe.expand(
            Functional(16),
            fpe.Expansion(partition=Shared(groups=2), layout="grouped"),
            example_inputs=torch.zeros(2, 64),
        )
