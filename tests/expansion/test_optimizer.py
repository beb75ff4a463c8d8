"""Every per-weight optimizer state follows its weight, and training goes on as if the network had always been wide."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks, mask_of, parents_of
from tests.support.nets import equal, mlp, train

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.01, weight_decay=0.1),
    "SGD momentum": partial(optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "SGD fused": partial(optim.SGD, lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "Adam": partial(optim.Adam, lr=0.01, weight_decay=0.1),
    "Adam foreach": partial(optim.Adam, lr=0.01, amsgrad=True, foreach=True),
    "AdamW": partial(optim.AdamW, lr=0.01, weight_decay=0.1),
    "AdamW fused": partial(optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "NAdam": partial(optim.NAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "Adadelta": partial(optim.Adadelta, lr=0.1),
    "Adagrad": partial(optim.Adagrad, lr=0.01, initial_accumulator_value=0.1),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.01, t0=1),
    "Adafactor": partial(optim.Adafactor, lr=0.01, weight_decay=0.1),
}


@cache
def sites() -> list[fpe.Site]:
    return fpe.find_sites(mlp(64, 6, 3), torch.zeros(2, 64))


X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_follows(name: str) -> None:
    model = mlp(64, 6, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, X)
    old = [optimizer.state.get(parameter, {}) for parameter in model.parameters()]
    parent = copy.deepcopy(model)
    fpe.expand(model, alpha=2, sites=sites(), optimizer=optimizer)
    parameters = list(model.parameters())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in parameters]
    assert set(optimizer.state) <= set(parameters), "old parameters are still held"
    rows = parents_of(model[0])
    mask = mask_of(model[0])
    assert mask is not None
    for key, before in old[0].items():
        after = optimizer.state[model[0].weight][key]
        if not isinstance(before, Tensor) or before.dim() < 2:
            assert after == before, key
        elif before.shape == parent[0].weight.shape:
            assert torch.equal(after, before[rows] * mask), key
        elif before.shape[0] == 6:
            assert torch.equal(after, before[rows]), key
        else:
            assert torch.equal(after, before), key
    for key, before in old[2].items():
        after = optimizer.state[model[2].weight][key]
        if isinstance(before, Tensor) and before.dim() == 2 and before.shape[1] == 6:
            out = mask_of(model[2])
            follows = before[:, rows]
            assert torch.equal(after, follows if out is None or after.shape != out.shape else follows * out), key
    assert equal(old[3], optimizer.state.get(model[2].bias, {}))
    kept = fpe.count_nonzeros(model)
    before_training = model[0].weight.detach().clone()
    train(model, optimizer, X)
    check_masks(model)
    assert fpe.count_nonzeros(model) == kept
    assert not torch.equal(before_training, model[0].weight), "the new weights train"


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW", "Adafactor"])
def test_state_may_be_reset_for_split_parameters_alone(name: str) -> None:
    model = mlp(64, 6, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, X)
    bias = copy.deepcopy(optimizer.state[model[2].bias])
    fpe.expand(model, fpe.ByShape(alpha=2, optimizer_state="reset"), sites=sites(), optimizer=optimizer)
    assert list(optimizer.state) == [model[2].bias]
    assert equal(optimizer.state[model[2].bias], bias)
    train(model, optimizer, X)
    check_masks(model)


def test_several_optimizers_and_groups_keep_their_places_and_options() -> None:
    model = mlp(64, 6, 3)
    first = optim.AdamW(
        [{"params": [model[0].bias], "lr": 0.5, "weight_decay": 0.0}, {"params": [model[0].weight], "name": "w"}],
        lr=0.1,
    )
    second = optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(first, 1, 0.5)
    train(model, [first, second], X)
    options = [
        {key: value for key, value in group.items() if key != "params"}
        for optimizer in (first, second)
        for group in optimizer.param_groups
    ]
    fpe.expand(model, alpha=2, sites=sites(), optimizer=(each for each in (first, second)))
    assert [group["params"] for group in first.param_groups] == [[model[0].bias], [model[0].weight]]
    assert second.param_groups[0]["params"] == [model[2].weight, model[2].bias]
    assert options == [
        {key: value for key, value in group.items() if key != "params"}
        for optimizer in (first, second)
        for group in optimizer.param_groups
    ]
    scheduler.step()
    assert [group["lr"] for group in first.param_groups] == [0.25, 0.05]
    train(model, [first, second], X)
    check_masks(model)


def test_an_optimizer_that_never_stepped_is_followed() -> None:
    model = mlp(64, 6, 3)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    fpe.expand(model, alpha=2, sites=sites(), optimizer=optimizer)
    assert not optimizer.state
    train(model, optimizer, X)
    check_masks(model)


class Nested(Optimizer):
    """Keeps its state in containers, as some third-party optimizers do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(
                        history=[torch.zeros_like(parameter)] * 2, extra={"name": "x", "sum": 0 * parameter.data}
                    )
                assert parameter.grad is not None
                state["history"] = [state["history"][1], parameter.grad.clone()]
                state["extra"]["sum"] += parameter.grad
                with torch.no_grad():
                    parameter.sub_(group["lr"] * (state["history"][0] + state["extra"]["sum"]))


def test_unknown_optimizers_with_nested_state_are_followed() -> None:
    model = mlp(64, 6, 3)
    optimizer = Nested(model.parameters())
    train(model, optimizer, X)
    old = copy.deepcopy(optimizer.state[model[0].weight])
    fpe.expand(model, alpha=2, sites=sites(), optimizer=optimizer)
    new, mask = optimizer.state[model[0].weight], mask_of(model[0])
    assert mask is not None
    assert torch.equal(new["history"][1], old["history"][1].repeat_interleave(2, 0) * mask)
    assert torch.equal(new["extra"]["sum"], old["extra"]["sum"].repeat_interleave(2, 0) * mask)
    assert new["extra"]["name"] == "x"
    train(model, optimizer, X)
    check_masks(model)


def test_nested_state_of_another_shape_is_refused() -> None:
    model = mlp(64, 6, 3)
    optimizer = Nested(model.parameters())
    train(model, optimizer, X)
    optimizer.state[model[0].weight]["preconditioners"] = [torch.eye(6), torch.eye(64)]
    with pytest.raises(ValueError, match=r"Nested state `preconditioners` of `0.weight` has shape \(6, 6\)"):
        fpe.expand(model, alpha=2, sites=sites(), optimizer=optimizer)


def test_wrapped_optimizers_are_opened() -> None:
    class Wrapper:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    model = mlp(64, 6, 3)
    inner = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, inner, X)
    fpe.expand(model, alpha=2, sites=sites(), optimizer=Wrapper(inner))  # type: ignore[arg-type]
    assert inner.param_groups[0]["params"][0] is model[0].weight
    assert inner.state[model[0].weight]["momentum_buffer"].shape == (12, 64)


def test_optimizer_state_dict_loads_into_a_fresh_optimizer_of_the_wide_model() -> None:
    model = mlp(64, 6, 3)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, X)
    fpe.expand(model, alpha=2, sites=sites(), optimizer=optimizer)
    train(model, optimizer, X)
    twin = mlp(64, 6, 3)
    fpe.load_expanded_state_dict(twin, copy.deepcopy(model.state_dict()))
    other = optim.AdamW(twin.parameters(), lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, each in ((model, optimizer), (twin, other)):
        train(net, each, X)
    assert equal(model.state_dict(), twin.state_dict())
    assert equal(optimizer.state_dict(), other.state_dict())


def test_gradient_hooks_of_a_parameter_stay_with_it_and_can_be_removed() -> None:
    model = mlp(64, 6, 3)
    seen: list[str] = []
    handles = [
        model[0].weight.register_hook(lambda grad: seen.append(f"hook {tuple(grad.shape)}")),
        model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(f"after {tuple(p.shape)}")),
    ]
    fpe.expand(model, alpha=2, sites=sites())
    model(X).sum().backward()
    assert seen == ["hook (12, 64)", "after (12, 64)"]
    for handle in handles:
        handle.remove()
    model(X).sum().backward()
    assert len(seen) == 2


def test_grad_scaler_goes_on() -> None:
    model = mlp(64, 6, 3)
    optimizer, scaler = optim.AdamW(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=2.0**8)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(X).pow(2).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    step()
    fpe.expand(model, alpha=2, sites=sites(), optimizer=optimizer)
    before = model[0].weight.detach().clone()
    step()
    check_masks(model)
    assert not torch.equal(before, model[0].weight)
