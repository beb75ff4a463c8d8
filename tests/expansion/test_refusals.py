"""An expansion that is refused says why in one sentence, and leaves model and optimizers as they were, bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

import fpe_lightning as fpe
from fpe_lightning.partitions import Clause
from tests.support.nets import cnn, equal, mlp, snapshot, train

Arguments = Callable[[], dict[str, Any]]


def to(**fields: Any) -> Arguments:
    """An expansion of some fields, which its own constructor may refuse."""
    return lambda: {"expansion": fpe.Expansion(**fields)}


def by_site(**expansions: fpe.Expansion) -> Arguments:
    """A mapping from the sites ``s0`` and ``s2``."""
    return lambda: {"expansion": {name.removeprefix("s"): expansion for name, expansion in expansions.items()}}


CASES: list[tuple[Arguments | dict[str, Any], str]] = [
    ({"alpha": 1}, "integer of at least 2; found 1"),
    ({"alpha": 2.0}, "integer of at least 2; found 2.0"),
    ({"alpha": True}, "integer of at least 2; found True"),
    ({"expansion": {}}, "mapping from sites to expansions is empty"),
    (by_site(s3=fpe.Paper()), r"No site matches '3'"),
    (
        by_site(s2=fpe.Paper(alpha=40)),
        "alpha=40 was asked for 2, whose neurons have (16|32) incoming weights at most.*Use alpha <= ",
    ),
    (by_site(s0=fpe.ByShape(), s2=fpe.ByShape(alpha=999)), "alpha=999 was asked for 2"),
    ({"expansion": {"0": fpe.Paper()}, "sites": "*"}, "`expansion` holds nothing for the chosen site '2'"),
    ({"expansion": fpe.Paper(), "alpha": 3}, "`alpha=3` is short for an expansion, and `expansion` is given too"),
    ({"exclude": "*"}, "`exclude` leaves no site to split: 0, 2 are all excluded"),
    ({"exclude": "00"}, r"No site matches '00'. Did you mean '0'\?"),
    ({"sites": "layers.*"}, r"No site matches 'layers.\*'.* Sites of this model: 0, 2"),
    ({"sites": "00"}, r"No site matches '00'. Did you mean '0'\?"),
    ({"sites": []}, "`sites` is empty"),
    (to(prune="totl"), r"Unknown pruning rule 'totl'. Did you mean 'total'\? Known: columns, global, incoming"),
    (to(layout="sparse"), "Unknown layout 'sparse'"),
    (to(optimizer_state="follow"), "Unknown `optimizer_state` 'follow'; known: keep, reset"),
    (to(partition="radnom"), r"Unknown partition 'radnom'. Did you mean 'random'"),
    (to(partition="clause"), "has no clauses: give `clauses`"),
    (to(partition=Clause([[0, 1], [2]])), "miss"),
    (to(partition="semi_structured", alpha=4), "needs alpha=2"),
    (to(partition=lambda *_: torch.zeros(3)), "A partition has to return int64"),
    (
        by_site(s0=fpe.Paper(prune="incoming"), s2=fpe.Paper(prune="incoming", alpha=15)),
        "adds 1792 copies .* weights of 2.weight have to go. Cannot rem",
    ),
    ({"example_inputs": None}, "pass `example_inputs`"),
    ({"example_inputs": torch.zeros(1, 3)}, "the forward raises"),
]


@contextmanager
def refused(message: str, model: nn.Module, *optimizers: Optimizer) -> Iterator[None]:
    """What happens inside raises a ValueError and changes nothing."""
    before = snapshot(model, *optimizers)
    with pytest.raises(ValueError, match=message):
        yield
    after = snapshot(model, *optimizers)
    assert [key for key in before if not equal(before[key], after[key])] == []


@cache
def trained(splits: int) -> tuple[nn.Module, Optimizer, Tensor]:
    model, x = mlp(64, 16, 16, 7), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    optimizer = AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    for _ in range(splits):
        fpe.expand(model, fpe.Expansion(alpha=2, prune="incoming"), sites="0", optimizer=optimizer, example_inputs=x)
        train(model, optimizer, x)
    return model, optimizer, x


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
@pytest.mark.parametrize("splits", [0, 1])
@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[message[:30] for _, message in CASES])
def test_refused_arguments_change_nothing(arguments: Arguments | dict[str, Any], message: str, splits: int) -> None:
    model, optimizer, x = copy.deepcopy(trained(splits))
    with refused(message, model, optimizer):
        given = arguments() if callable(arguments) else arguments
        fpe.expand(model, **{"optimizer": optimizer, "example_inputs": x, **given})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var", "4.weight"])
def test_a_diverged_run_is_not_split(name: str, bad: float) -> None:
    model = cnn()
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(2, 16, 8, 8)
    train(model, optimizer, x)
    model.state_dict()[name].view(-1)[1] = bad
    with refused(f"`{name}` holds NaN or infinity: the run has diverged, so 0 is not split", model, optimizer):
        fpe.expand(model, alpha=2, sites="0", optimizer=optimizer, example_inputs=x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (LBFGS, "LBFGS cannot continue after a split: it keeps one flat history"),
        (
            lambda parameters: torch.optim.Muon([p for p in parameters if p.dim() == 2], lr=0.01),
            "Muon cannot continue after a split: it mixes the entries of a matrix",
        ),
    ],
)
def test_optimizers_that_cannot_follow_are_refused(make: Any, message: str) -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    optimizer = make(model.parameters())
    with refused(message, model, optimizer):
        fpe.expand(model, alpha=2, optimizer=optimizer, example_inputs=x)


def test_subclasses_of_refused_optimizers_are_refused_too() -> None:
    class Mine(LBFGS):
        pass

    model = mlp(64, 8, 3)
    with pytest.raises(ValueError, match="Mine cannot continue after a split: it keeps one flat history"):
        fpe.expand(model, alpha=2, optimizer=Mine(model.parameters()), example_inputs=torch.randn(4, 64))


def test_an_optimizer_that_holds_nothing_of_the_split_may_be_anything() -> None:
    model = mlp(64, 8, 3)
    others = LBFGS([model[2].bias])
    fpe.expand(model, alpha=2, optimizer=[others, SGD(model.parameters())], example_inputs=torch.randn(4, 64))
    assert model[0].out_features == 16


def test_state_of_an_unknown_shape_is_named_and_may_be_reset() -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, x)
    optimizer.state[model[0].weight]["sketch"] = torch.zeros(5, 2)
    with refused(
        r"SGD state `sketch` of `0.weight` has shape \(5, 2\), .* \(8, 64\); expand with opt", model, optimizer
    ):
        fpe.expand(model, alpha=2, optimizer=optimizer, example_inputs=x)
    fpe.expand(model, fpe.ByShape(alpha=2, optimizer_state="reset"), optimizer=optimizer, example_inputs=x)
    assert model[0].weight not in optimizer.state
    assert "momentum_buffer" in optimizer.state[model[2].bias]


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_a_users_own_weight_mask_is_left_alone(kind: str) -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    mine = torch.ones(8, 64)
    if kind == "buffer":
        model[0].register_buffer("weight_mask", mine)
    else:
        model[0].weight_mask = mine
    fpe.expand(model, alpha=2, example_inputs=x)
    assert model[0].weight_mask is mine
    assert model[0].weight.shape == (16, 64)


def test_something_else_than_an_optimizer_is_named() -> None:
    model, x = mlp(64, 8, 3), torch.randn(4, 64)
    with pytest.raises(TypeError, match=r"`optimizer` takes one or several torch optimizers, found 0.1"):
        fpe.expand(model, alpha=2, optimizer=[0.1], example_inputs=x)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"`optimizer` takes one or several torch optimizers, found <class.*Adam"):
        fpe.expand(model, alpha=2, optimizer=torch.optim.Adam, example_inputs=x)  # type: ignore[arg-type]


def test_costly_splits_warn_with_their_figures() -> None:
    with pytest.warns(
        fpe.ExpansionWarning,
        match=r"Splitting 0 by alpha=2 adds 88 copies to 128 incoming weights \(69%\).* a child gets 8 inputs",
    ) as caught:
        fpe.expand(mlp(16, 8, 10), alpha=2, example_inputs=torch.zeros(1, 16))
    assert caught[0].filename == __file__, "the warning points at the caller's line"


def test_cheap_splits_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    fpe.expand(mlp(64, 8, 3), alpha=2, example_inputs=torch.zeros(1, 64))
    fpe.expand(mlp(512, 8, 94), fpe.Paper(alpha=4, prune="incoming"), example_inputs=torch.zeros(1, 512))  # the demo
    assert not [warning for warning in recwarn if issubclass(warning.category, fpe.ExpansionWarning)]


def test_a_count_that_would_not_be_kept_is_refused_before_anything_is_touched(monkeypatch: pytest.MonkeyPatch):
    model = mlp(32, 8, 4)
    before = snapshot(model)
    monkeypatch.setattr("fpe_lightning.expansion.draft.Draft.change", lambda draft: 3)
    with pytest.raises(ValueError, match="would change the number of non-zeros by 3, as two of them share a weight"):
        fpe.expand(model, alpha=2, example_inputs=torch.zeros(2, 32))
    assert equal(before, snapshot(model))
