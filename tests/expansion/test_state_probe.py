"""State of matrix sides is refused before anything changes, also where its shape fits by accident."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

import fpe_lightning as fpe
from fpe_lightning.expansion.state_probe import state_of_other_shape
from fpe_lightning.sparse import check_masks
from tests.support.nets import equal, snapshot, train

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Sided(Optimizer):
    """Keeps something of one side of each matrix, or of the whole, as ``keep`` says."""

    def __init__(self, parameters: Any, keep: str) -> None:
        super().__init__(parameters, {"lr": 0.1, "keep": keep})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, grad = self.state[parameter], parameter.grad
                if grad.dim() == 2 and group["keep"] == "side":
                    state.setdefault("side", torch.zeros(grad.shape[0], grad.shape[0])).add_(grad @ grad.T)
                elif group["keep"] == "object":
                    state.setdefault("object", Sides(grad)).matrices[0] += 1
                elif group["keep"] == "deque":
                    state.setdefault("last", deque(maxlen=2)).append(grad.clone())
                    grad = sum(state["last"])
                parameter.data.add_(grad, alpha=-group["lr"])


class Sides:
    """An object with matrices."""

    def __init__(self, grad: torch.Tensor) -> None:
        self.matrices = [torch.zeros(grad.shape[0], grad.shape[0])]


def square() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("side", r"Sided state `side` of `\d\.weight` does not follow .* shape \(6, 10\) has one of shape \(6, 6\)"),
        ("object", r"Sided state `object` .* is an object with matrices \(Sides\)"),
    ],
)
def test_matrix_sides_are_refused_and_nothing_changes(keep: str, message: str) -> None:
    model = square()
    optimizer = Sided(model.parameters(), keep)
    StepLR(optimizer, 1)  # it replaces `step`
    train(model, optimizer, X)
    before = snapshot(model, optimizer) if keep == "side" else None
    with pytest.raises(ValueError, match=message):
        fpe.expand(model, fpe.Paper(alpha=2), example_inputs=X, optimizer=optimizer)
    if before is not None:
        assert equal(before, snapshot(model, optimizer))
    train(model, optimizer, X)


def test_reset_drops_it() -> None:
    model = square()
    optimizer = Sided(model.parameters(), "side")
    train(model, optimizer, X)
    fpe.expand(model, fpe.Paper(alpha=2, optimizer_state="reset"), example_inputs=X, optimizer=optimizer)
    train(model, optimizer, X)
    check_masks(model)


def test_a_deque_of_gradients_follows() -> None:
    model = square()
    optimizer = Sided(model.parameters(), "deque")
    train(model, optimizer, X)
    fpe.expand(model, fpe.Paper(alpha=2), example_inputs=X, optimizer=optimizer)
    last = optimizer.state[model[0].weight]["last"]
    assert last.maxlen == len(last) == 2
    assert all(each.shape == model[0].weight.shape for each in last)
    train(model, optimizer, X)
    check_masks(model)


def test_the_optimizer_itself_takes_no_step() -> None:
    model = square()
    optimizer = Sided(model.parameters(), "side")
    scheduler = StepLR(optimizer, 1)
    train(model, optimizer, X)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    before, generator = [each.detach().clone() for each in model.parameters()], torch.get_rng_state()
    assert state_of_other_shape(optimizer, 2) == ("side", (6, 6))
    assert all(map(torch.equal, before, model.parameters()))
    assert torch.equal(generator, torch.get_rng_state())
    assert not calls
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize("name", ["AdaShift", "Conda", "ScalableShampoo"])
def test_optimizers_of_others_go_on_or_are_refused(name: str) -> None:
    package = pytest.importorskip("pytorch_optimizer")
    model = square()
    optimizer = getattr(package, name)(model.parameters(), lr=1e-3)
    train(model, optimizer, X, steps=12)
    try:
        fpe.expand(model, fpe.Paper(alpha=2), example_inputs=X, optimizer=optimizer)
    except ValueError as error:
        assert 'optimizer_state="reset"' in str(error)  # noqa: PT017
    train(model, optimizer, X)
    check_masks(model)
