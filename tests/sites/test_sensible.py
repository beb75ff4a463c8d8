"""Sites that gain nothing from a split, or cannot be split, are left out unless they are named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpe_lightning as fpe
from tests.support.nets import Net, mlp, snapshot
from tests.support.nets import equal as same

X = torch.randn(8, 16)


def split(model: nn.Module, example: Tensor = X, **options: Any) -> list[str]:
    options = {"expansion": fpe.Paper(), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fpe.ExpansionWarning)
        return [site.name for site in fpe.expand(model, example_inputs=example, **options).sites]


def probe() -> nn.Sequential:
    return nn.Sequential(mlp(16, 8, 6).requires_grad_(False), nn.Tanh(), mlp(6, 5, 2))


def lora() -> Net:
    """A frozen weight with an adapter of rank 4 in front of a hidden layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(self.down(self.dropout(x))) * 0.5 + self.base(x)))

    return Net(
        forward,
        base=nn.Linear(16, 16).requires_grad_(False),
        down=nn.Linear(16, 4, bias=False),
        up=nn.Linear(4, 16, bias=False),
        dropout=nn.Dropout(0.1),
        head=mlp(16, 6, 2),
    )


def test_frozen_weights_are_not_split() -> None:
    model = probe()
    before = snapshot(model[0])
    assert split(model) == ["2.0"]
    assert same(before, snapshot(model[0]))


def test_a_frozen_model_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"No site is left to split: 0: its weights are frozen \(requires_grad=False\)"
    ):
        split(mlp(16, 8, 6).requires_grad_(False))


def test_the_rank_of_a_factorised_weight_is_not_split() -> None:
    assert {site.name: site.linear for site in fpe.find_sites(lora(), X)} == {"down": True, "head.0": False}
    assert split(lora()) == ["head.0"]


@pytest.mark.parametrize(
    ("between", "linear"),
    [
        (nn.Identity(), True),
        (nn.Dropout(), True),
        (nn.AvgPool1d(1), True),
        (nn.MaxPool1d(1), False),
        (nn.ReLU(), False),
        (nn.LayerNorm(8), False),
        (nn.BatchNorm1d(8), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_operators_between_two_weights(between: nn.Module, linear: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 8), between, nn.Linear(8, 3))
    if isinstance(between, (nn.AvgPool1d, nn.MaxPool1d)):
        model = nn.Sequential(nn.Conv1d(16, 8, 1), between, nn.Conv1d(8, 3, 1))
    (site,) = fpe.find_sites(model, X if isinstance(model[0], nn.Linear) else X[..., None])
    assert site.linear is linear


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (mlp(1, 8, 6, 2), torch.randn(8, 1)),
        (nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.ReLU(), nn.Conv1d(6, 1, 3)), X[:, None]),
    ],
    ids=["linear", "convolution"],
)
def test_a_site_that_cannot_be_split_is_left_out_with_a_warning(model: nn.Module, example: Tensor) -> None:
    with pytest.warns(UserWarning, match="0 is not split: alpha=2 was asked for 0, whose neurons have 1 incoming weig"):
        assert [site.name for site in fpe.expand(model, example_inputs=example).sites] == ["2"]


def test_a_named_site_is_never_left_out() -> None:
    with pytest.raises(ValueError, match="alpha=2 was asked for 0, whose neurons have 1 incoming weights at most"):
        split(mlp(1, 8, 6, 2), torch.randn(8, 1), sites="0")
    assert split(lora(), sites=["down"]) == ["down"]
    assert split(probe(), sites=["0.0", "2.0"]) == ["0.0", "2.0"]


def test_alpha_of_one_leaves_a_site_as_it_is() -> None:
    model = mlp(16, 8, 6, 2)
    assert split(model, expansion={"0": fpe.Paper(alpha=1), "*": fpe.Paper()}) == ["2"]
    assert (model[0].out_features, model[2].out_features) == (8, 12)
    with pytest.raises(ValueError, match="No site is left to split: 0: alpha=1 leaves it as it is"):
        split(mlp(16, 8, 2), expansion={"*": fpe.Paper(alpha=1)})
    with pytest.raises(ValueError, match="an integer of at least 2; found 1"):
        split(mlp(16, 8, 2), expansion=fpe.Paper(alpha=1))


def test_traced_and_scripted_modules_are_refused_before_they_are_touched() -> None:
    for model in (torch.jit.trace(mlp(16, 8, 3), X), torch.jit.script(mlp(16, 8, 3))):
        expected = model(X)
        for act in (lambda m: fpe.find_sites(m, X), lambda m: fpe.expand(m, example_inputs=X)):
            with pytest.raises(ValueError, match=r"traced or scripted by torch.jit.*split the Python module before"):
                act(model)
        assert torch.equal(model(X), expected)
    part = nn.Sequential(torch.jit.script(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="`0` is a module that was traced or scripted"):
        fpe.expand(part, example_inputs=X)


def test_lazy_modules_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"0\.weight is not initialised yet: run one forward pass"):
        fpe.expand(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2)), example_inputs=X)
