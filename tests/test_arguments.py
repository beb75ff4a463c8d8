"""Values that no caller means get a sentence that names the argument, what was found and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, SaturationTrigger
from fpe_lightning.networks import MLP, SmallCNN, SmallViT, WideSparseMLP
from tests.support.nets import equal, mlp, snapshot

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4) % 3
NAN = float("nan")


def split(model: Any = None, x: Tensor = X, **options: Any) -> Any:
    return fpe.expand(mlp(64, 8, 3) if model is None else model, alpha=2, example_inputs=x, **options)


def fit(x: Any, y: Any) -> Any:
    return fpe.partitions.Interaction().fit(x, y)


MODULES = [
    (name, value) for name, value in (("a str", "m"), ("None", None), ("the class Linear", nn.Linear), ("an int", 3))
]
FUNCTIONS = (
    lambda model: fpe.expand(model, alpha=2, example_inputs=X),
    lambda model: fpe.find_sites(model, X),
    fpe.count_nonzeros,
    fpe.plain,
    lambda model: fpe.load_expanded_state_dict(model, {}),
    lambda model: fpe.restore_structure(model, {}),
)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("found", "value"), MODULES)
def test_what_is_no_model_is_refused(function: Callable[[Any], Any], found: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"`model` is a torch\.nn\.Module, found {found}"):
        function(value)


@pytest.mark.parametrize("value", [None, 3, "best.ckpt", [1]])
@pytest.mark.parametrize("load", [fpe.load_expanded_state_dict, fpe.restore_structure])
def test_what_is_no_state_dict_is_refused(load: Callable[..., Any], value: Any) -> None:
    with pytest.raises(TypeError, match=r"`state_dict` maps names to tensors, found (None|an? \w+)"):
        load(mlp(64, 8, 3), value)


CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: split(sites=3), "`sites` takes names or globs of sites, a string or a list of them; found 3"),
    (lambda: split(averages=3), "`averages` takes modules, or names"),
    (lambda: split(mlp(64, 8, 3).to("meta"), X.to("meta")), "`0.weight` is on the meta device"),
    (lambda: split(mlp(64, 8, 3).to(torch.complex64), X.to(torch.complex64)), "`0.weight` is complex"),
    (lambda: ExpansionCallback(epoch=1, sites=3), "`sites` takes names"),
    (lambda: ExpansionCallback(epoch=1, sites=[3]), "`sites` takes names"),
    (lambda: ExpansionCallback(epoch=1, exclude=3), "`exclude` takes names"),
    (lambda: ExpansionCallback(epoch=1, averages=[3]), "`averages` takes names"),
    (lambda: ExpansionCallback(epoch=1, averages=3), "`averages` takes names"),
    (lambda: ExpansionCallback(trigger=SaturationTrigger("x"), max_splits="3"), "`max_splits` has to be an integer"),
    (lambda: SaturationTrigger(3), "`monitor` takes the name of a metric"),
    (lambda: SaturationTrigger("x", patience="2"), "`patience` takes integers"),
    (lambda: SaturationTrigger("x", min_delta=NAN), "`min_delta` is a number of at least 0, found nan"),
    (lambda: MLP(64, "8", 3), "`hidden` takes integers of at least 1, found '8'"),
    (lambda: MLP(64, 8.5, 3), "`hidden` takes integers"),
    (lambda: MLP(64, True, 3), "`hidden` takes integers"),
    (lambda: MLP("64", 8, 3), "`in_features` takes integers"),
    (lambda: MLP(64, 8, 3, dropout=NAN), "`dropout` is a number"),
    (lambda: WideSparseMLP(64, 8, 3, alpha="2"), "`alpha` has to be an integer"),
    (lambda: SmallCNN(channels=[0]), "`channels` takes integers"),
    (lambda: SmallCNN(channels="8"), "`channels` takes integers"),
    (lambda: SmallCNN(channels=[]), "needs a block"),
    (lambda: SmallCNN(hidden=-1), "`hidden` takes integers"),
    (lambda: SmallViT(hidden="8"), "`hidden` takes integers"),
    (lambda: SmallViT(hidden=[-1]), "`hidden` takes integers"),
    (lambda: fit(X, torch.full((4,), 10**9)), "Class numbers go up to 1000000000 in 4 samples"),
    (lambda: fit(X, Y - 5), "Class numbers begin at 0, found -5"),
    (lambda: fit(X, Y[:2]), "one for each of the 4 samples"),
    (lambda: fit(X, Y.float()), "are class numbers, bool or integer"),
    (lambda: fit(X * NAN, Y), "NaN or infinity"),
    (lambda: fit(X[:0], Y[:0]), r"Samples are floating-point numbers \(n, inputs\)"),
    (lambda: fit(X[0], Y), r"Samples are floating-point numbers \(n, inputs\)"),
    (lambda: fit(X.int(), Y), r"Samples are floating-point numbers \(n, inputs\)"),
    (lambda: fit(X.numpy(), Y), r"Samples are a pair of tensors \(x, y\)"),
]


@pytest.mark.parametrize(("make", "told"), CASES, ids=[told for _, told in CASES])
def test_a_bad_value_gets_a_sentence(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(Exception, match=told) as error:
        make()
    assert isinstance(error.value, (ValueError, TypeError)) or type(error.value).__name__ == "MisconfigurationException"


def test_a_refused_model_is_unchanged() -> None:
    model = mlp(64, 8, 3).to(torch.complex64)
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="is complex"):
        split(model, X.to(torch.complex64))
    assert torch.equal(model[0].weight, before)
    model = mlp(64, 8, 3)
    seen = snapshot(model)
    with pytest.raises(ValueError, match="`sites` takes"):
        split(model, sites=3)
    assert equal(seen, snapshot(model))
