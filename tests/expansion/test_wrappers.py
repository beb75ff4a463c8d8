"""Optimizers around optimizers: what they hold for a parameter follows it, or the split is refused before it begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks, mask_of
from tests.support.nets import mlp, snapshot, train

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


@cache
def sites() -> list[fpe.Site]:
    return fpe.find_sites(mlp(64, 6, 3), torch.zeros(2, 64))


class Lookahead(Optimizer):
    """Slow weights in a dict by parameter; shares groups and state with the optimizer inside."""

    def __init__(self, optimizer: Optimizer, every: int = 2) -> None:
        self.optimizer, self.every, self.count = optimizer, every, 0
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults
        self.state = optimizer.state
        self.slow = self.make()

    def make(self) -> Any:
        return {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return list(self.slow.items())

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()
        self.count += 1
        if self.count % self.every == 0:
            for fast, slow in self.pairs():
                slow.lerp_(fast, 0.5)
                fast.copy_(slow)


class ByPosition(Lookahead):
    """Slow weights in lists, as in the first implementation of Lookahead."""

    def make(self) -> Any:
        return [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        groups = zip(self.param_groups, self.slow, strict=True)
        return [pair for group, slow in groups for pair in zip(group["params"], slow, strict=True)]


class InGroups(ByPosition):
    """Slow weights in the groups."""

    def make(self) -> Any:
        for group in self.param_groups:
            group["slow"] = [p.detach().clone() for p in group["params"]]
        return None

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [pair for g in self.param_groups for pair in zip(g["params"], g["slow"], strict=True)]


class OwnState(Lookahead):
    """Slow weights in a state of the wrapper's own."""

    def make(self) -> Any:
        self.state = defaultdict(dict)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"] = p.detach().clone()

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [(p, self.state[p]["slow"]) for group in self.param_groups for p in group["params"]]


WRAPPERS = [Lookahead, ByPosition, InGroups, OwnState]


@pytest.mark.parametrize("state", ["keep", "reset"])
@pytest.mark.parametrize("layout", ["masked", "grouped"])
@pytest.mark.parametrize("make", WRAPPERS)
def test_slow_copies_follow(make: Callable[..., Lookahead], layout: str, state: Any) -> None:
    model = mlp(64, 8, 3)
    optimizer = make(optim.AdamW(model.parameters(), lr=0.01))
    train(model, optimizer, X)
    slow = [copy.clone() for _, copy in optimizer.pairs()]
    kind: Any = fpe.Paper if layout == "masked" else fpe.Blocks
    options = {} if layout == "masked" else {"groups": 2}
    found = fpe.find_sites(model, X)
    fpe.expand(model, kind(**options, optimizer_state=state), sites=found, optimizer=optimizer)
    pairs = optimizer.pairs()
    assert [id(fast) for fast, _ in pairs] == [id(p) for p in model.parameters()]
    assert [copy.shape for _, copy in pairs] == [p.shape for p in model.parameters()]
    assert torch.equal(pairs[1][1].sort().values, slow[1].repeat_interleave(2).sort().values)  # blocks have an order
    if layout == "masked":
        assert torch.equal(pairs[0][1], slow[0].repeat_interleave(2, 0) * mask_of(model[0]))
    inner = optimizer.optimizer.state
    assert (model[0].weight in inner and bool(inner[model[0].weight])) == (state == "keep")
    nonzeros = fpe.count_nonzeros(model)
    train(model, optimizer, X, 6)
    check_masks(model)
    assert fpe.count_nonzeros(model) == nonzeros


def test_wrappers_in_wrappers() -> None:
    class Accelerated(Optimizer):
        """As accelerate's: no groups and no state of its own."""

        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

        param_groups = property(lambda self: self.optimizer.param_groups)  # type: ignore[assignment]
        state = property(lambda self: self.optimizer.state)  # type: ignore[assignment]

    model = mlp(64, 6, 3)
    lookahead = Lookahead(optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    train(model, lookahead, X)
    fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=Accelerated(lookahead))
    assert set(lookahead.slow) == set(model.parameters())
    assert lookahead.optimizer.state[model[0].weight]["momentum_buffer"].shape == (12, 64)


@pytest.mark.parametrize("value", [lambda p: {id(p): p.detach().clone()}, lambda p: [p.detach().clone(), None]])
def test_copies_that_no_parameter_points_to_are_refused(value: Callable[[Tensor], Any]) -> None:
    model = mlp(64, 6, 3)
    optimizer: Any = optim.SGD(model.parameters(), lr=0.1)
    optimizer.backup = value(model[0].weight)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=r"SGD keeps a tensor of a parameter's shape in `backup`, which cannot follow"):
        fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=optimizer)
    assert str(snapshot(model, optimizer)) == str(before)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = mlp(64, 6, 3), mlp(64, 6, 3)
    good, bad = (optim.SGD(each.parameters(), lr=0.1) for each in (model, other))
    before = str(snapshot(model, bad))
    with pytest.raises(ValueError, match="SGD holds none of the model's parameters: pass the optimizer that trains"):
        fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=bad)
    with pytest.raises(
        ValueError, match=r"Optimizer 1 of 2 \(SGD\) holds none of the model's parameters: leave it out"
    ):
        fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=[good, bad])
    assert str(snapshot(model, bad)) == before
    with pytest.raises(ValueError, match="holds none of the model's parameters"):
        fpe.load_expanded_state_dict(model, model.state_dict(), optimizer=bad)
    some = optim.SGD(model[2].parameters(), lr=0.1)
    fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=[good, some])
    assert some.param_groups[0]["params"][0] is good.param_groups[0]["params"][2] is model[2].weight


def test_an_optimizer_inside_that_holds_copies_alone_is_refused() -> None:
    class Master(Lookahead):
        """As mixed precision with master weights."""

        def __init__(self, optimizer: Optimizer, groups: Any) -> None:
            super().__init__(optimizer)
            self.param_groups = groups

    model = mlp(64, 6, 3)
    masters = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    optimizer = Master(optim.SGD(masters, lr=0.1), optim.SGD(model.parameters(), lr=0.1).param_groups)
    with pytest.raises(ValueError, match=r"Master wraps SGD, which holds none of the model's parameters but copies"):
        fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=optimizer)


def _pytorch_optimizer(inner: Optimizer) -> Any:
    return pytest.importorskip("pytorch_optimizer", reason="not installed").Lookahead(inner, k=2)


def _timm(inner: Optimizer) -> Any:
    return pytest.importorskip("timm.optim", reason="not installed").Lookahead(inner, k=2)


def _schedule_free(inner: Optimizer) -> Any:
    # Adam would take the wrapper's state for its own.
    sgd = optim.SGD(inner.param_groups[0]["params"], lr=0.1, momentum=0.9)
    wrapped = pytest.importorskip("schedulefree", reason="not installed").ScheduleFreeWrapper(sgd)
    wrapped.train()
    return wrapped


def _accelerate(inner: Optimizer) -> Any:
    accelerate = pytest.importorskip("accelerate", reason="not installed")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(inner)


def _schedule_free_itself(inner: Optimizer) -> Any:
    own = pytest.importorskip("schedulefree", reason="not installed").AdamWScheduleFree(inner.param_groups, lr=0.01)
    own.train()
    return own


@pytest.mark.parametrize("wrap", [_pytorch_optimizer, _timm, _schedule_free, _schedule_free_itself, _accelerate])
def test_wrappers_of_other_packages(wrap: Callable[[Optimizer], Any]) -> None:
    model = mlp(64, 6, 3)
    optimizer = wrap(optim.Adam(model.parameters(), lr=0.01))
    train(model, [optimizer], X, 5)
    fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=optimizer)
    nonzeros, before = fpe.count_nonzeros(model), [p.detach().clone() for p in model.parameters()]
    train(model, [optimizer], X, 6)
    check_masks(model)
    assert fpe.count_nonzeros(model) == nonzeros
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_narrow_model_loads_wide_weights_and_its_wrapper_copies_them() -> None:
    wide, model = mlp(64, 6, 3), mlp(64, 6, 3, seed=1)
    fpe.expand(wide, fpe.Paper(), sites=sites())
    optimizer = Lookahead(optim.SGD(model.parameters(), lr=0.1))
    fpe.load_expanded_state_dict(model, wide.state_dict(), optimizer=optimizer)
    assert [id(fast) for fast, _ in optimizer.pairs()] == [id(p) for p in model.parameters()]
    assert torch.equal(optimizer.slow[model[0].weight], wide[0].weight)
    train(model, optimizer, X)
    check_masks(model)


def test_optimizers_may_come_from_a_generator() -> None:
    model = mlp(64, 6, 3)
    one, two = optim.SGD(model[0].parameters(), lr=0.1), optim.SGD(model[2].parameters(), lr=0.1)
    fpe.expand(model, fpe.Paper(), sites=sites(), optimizer=(each for each in (one, two)))
    assert one.param_groups[0]["params"][0] is model[0].weight
