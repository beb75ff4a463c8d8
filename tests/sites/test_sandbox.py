"""Finding sites leaves the model, its inputs and the random number generators alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from fpe_lightning.sites import find_sites
from tests.support.nets import Net, proven, reasons


def test_only_shapes_are_computed_unless_control_flow_reads_values() -> None:
    seen: list[type] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        seen.append(type(x))
        hidden = F.relu(self.a(x))
        return self.b(hidden) if not self.reads or x.sum() > -1e9 else self.c(hidden)

    model = Net(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 3), c=nn.Linear(6, 3))
    model.reads = False
    assert [site.name for site in find_sites(model, torch.randn(2, 8))] == ["a"]
    assert set(seen) == {FakeTensor}
    model.reads = True
    assert [site.name for site in proven(model, torch.randn(2, 8))] == ["a"]
    assert reasons(model, torch.randn(2, 8))["c"] == "the forward does not use it on the example inputs"


def snapshot(model: nn.Module) -> list[object]:
    attributes = [
        (name, key, id(value), list(value) if isinstance(value, (dict, list)) else None)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    ]
    tensors = [
        (name, id(t), t.clone(), t._version, set(vars(t))) for name, t in model.state_dict(keep_vars=True).items()
    ]
    flags = [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return [attributes, tensors, flags, torch.backends.mha.get_fastpath_enabled()]


def equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("fails", ["never", "reads values", "always"])
def test_model_and_random_numbers_are_left_alone(fails: str) -> None:
    calls: list[object] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        self.count += 1
        self.history.append(x.mean())
        self.last = self.net(x)
        self.offset.add_(1)
        random.random()
        np.random.rand()
        if fails == "always" or (fails == "reads values" and bool((torch.rand(()) > 2).item())):
            raise RuntimeError("no")
        return self.last

    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Flatten(), nn.Linear(6 * 24, 3))
    model = Net(forward, net=net)
    model.count, model.history, model.last, model.offset = 0, [], None, torch.zeros(3)
    model.net[1].eval()
    model.net[0].register_forward_hook(lambda *args: calls.append(args))
    model.net[0].register_forward_pre_hook(lambda *args: calls.append(args))
    example = torch.randn(2, 3, 8, 6)
    before, example_before = snapshot(model), example.clone()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if fails == "always":
        with pytest.raises(ValueError, match="the forward raises RuntimeError: no"):
            find_sites(model, example)
    else:
        assert [site.name for site in find_sites(model, example)] == ["net.0"]
    assert equal(before, snapshot(model))
    assert calls == []
    assert torch.equal(model.offset, torch.zeros(3))
    assert torch.equal(example, example_before)
    assert not vars(example)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()
