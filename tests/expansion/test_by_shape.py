"""Split by shape: large layers into blocks, all others as the paper says."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.partitions import Shared
from fpe_lightning.sparse import autotune, check_masks, dense_mask, dense_weight, structure_of


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def same(model: nn.Module, other: nn.Module) -> bool:
    state, others = model.state_dict(), other.state_dict()
    return list(state) == list(others) and all(torch.equal(state[key], others[key]) for key in state)


def split(model: nn.Sequential, **options: object) -> nn.Sequential:
    report = fpe.expand(model, example_inputs=torch.zeros(2, model[0].in_features), **options)
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    return model


@pytest.mark.parametrize(("outputs", "budget", "grouped"), [(10, "columns", 1), (128, "blocks", 2)])
@pytest.mark.parametrize("alpha", [2, 4])
def test_a_large_pair_is_stored_at_the_size_of_its_non_zeros(
    alpha: int, outputs: int, budget: str, grouped: int
) -> None:
    model = split(mlp(128, 1024, outputs), alpha=alpha, partition="by_shape")
    explicit = {"partition": Shared(groups=16), "budget": budget, "layout": "grouped"}
    assert same(model, split(mlp(128, 1024, outputs), alpha=alpha, **explicit))
    assert sum(structure_of(module) is not None for module in model) == grouped
    stored = sum(parameter.numel() for parameter in model.parameters())
    assert fpe.count_nonzeros(model) <= stored < 1.02 * fpe.count_nonzeros(model)


@pytest.mark.parametrize(
    "widths", [(64, 256, 10), (64, 1032, 10), (6, 1024, 10)], ids=["narrow", "uneven", "few inputs"]
)
def test_all_others_are_split_by_the_rule_of_the_paper(widths: tuple[int, ...]) -> None:
    assert same(split(mlp(*widths), partition="by_shape"), split(mlp(*widths)))


def test_a_weight_between_two_hidden_layers_is_masked() -> None:
    model = split(mlp(64, 1024, 1024, 10), partition="by_shape")
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
            split(model, alpha=alpha, partition="by_shape", optimizer=optimizer)
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
    models = [split(mlp(64, 512, 10), partition="random") for _ in range(2)]
    assert models[0][0].out_features == 1024
    assert same(split(models[0], partition="by_shape"), split(models[1], partition="random"))


def test_more_blocks_than_pay_are_not_made() -> None:
    model = split(mlp(256, 1024, 2), alpha=16, partition="by_shape")
    assert same(model, split(mlp(256, 1024, 2), alpha=16, partition="random"))


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
    for model, partition in zip(models, ("by_shape", "random"), strict=True):
        fpe.expand(model, fpe.Expansion(partition=partition), example_inputs=torch.zeros(2, 64, 3, 3))
    assert same(*models)


def test_state_that_blocks_cannot_hold_leaves_the_weight_masked(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(64, 1024, 10)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    with caplog.at_level(logging.INFO, logger="fpe_lightning"):
        split(model, partition="by_shape", optimizer=optimizer)
    assert structure_of(model[0]) is None
    assert "keeps state of rows and columns, which a packed weight does not have" in caplog.text


@pytest.mark.parametrize("options", [{"budget": "columns"}, {"layout": "grouped"}, {"groups": [[0]]}])
def test_it_decides_on_budget_and_layout_itself(options: dict[str, object]) -> None:
    model = mlp(8, 4, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='partition="by_shape" decides on the budget and the layout of each site'):
        split(model, partition="by_shape", **options)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    with pytest.raises(MisconfigurationException, match='partition="by_shape" decides'):
        ExpansionCallback(fpe.ByShape(), step=1, **options)


@pytest.mark.parametrize("widths", [(128, 1024, 10), (64, 256, 10)])
def test_it_is_the_default(widths: tuple[int, ...]) -> None:
    assert same(split(mlp(*widths)), split(mlp(*widths), partition="by_shape"))
    callback = ExpansionCallback(step=1)
    assert (callback.partition, callback.budget, callback.layout) == ("by_shape", None, None)


@pytest.mark.parametrize("options", [{"budget": "incoming"}, {"layout": "masked"}, {"budget": "total"}])
def test_a_budget_or_a_layout_alone_goes_with_the_partition_of_the_paper(options: dict[str, str]) -> None:
    asked = {"partition": "random", "budget": "total", "layout": "masked", **options}
    assert same(split(mlp(64, 1024, 10), **options), split(mlp(64, 1024, 10), **asked))
    callback = ExpansionCallback(step=1, **options)
    assert {name: getattr(callback, name) for name in asked} == asked


@pytest.mark.parametrize("partition", [None, "by_shape"])
def test_auto_alone_times_how_the_blocks_are_stored(partition: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("grouped", "masked"):
        seconds = {"masked": 2.0, "grouped": 2.0, fastest: 1.0}
        monkeypatch.setattr(autotune, "measure", lambda layers, *_, seconds=seconds: {n: seconds[n] for n in layers})
        monkeypatch.setattr(autotune.ChoiceFile, "load", lambda _: {})
        model, blocks = split(mlp(64, 1024, 10), partition=partition, layout="auto"), split(mlp(64, 1024, 10))
        assert (structure_of(model[0]) is None) == (fastest == "masked")
        assert torch.equal(dense_weight(model[0]), dense_weight(blocks[0]))
        assert torch.equal(dense_mask(model[0]), dense_mask(blocks[0]))
    narrow = split(mlp(64, 256, 10), partition=partition, layout="auto")
    assert same(narrow, split(mlp(64, 256, 10), partition="random"))


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
    for model, partition in zip(models, ("by_shape", "random"), strict=True):
        fpe.expand(model, fpe.Expansion(partition=partition), example_inputs=torch.zeros(2, 64))
        model(torch.zeros(2, 64))
    assert same(*models)
    with pytest.raises(ValueError, match="does not call its layer with an input"):
        fpe.expand(
            Functional(16),
            fpe.Expansion(partition=Shared(groups=2), layout="grouped"),
            example_inputs=torch.zeros(2, 64),
        )
