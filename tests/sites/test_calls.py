"""Sites are found in the calls of a step, on the very values, whatever the arguments are and whichever call fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpe_lightning.sites.calls import SiteSearch
from fpe_lightning.sites.found import Found
from tests.support.nets import Net, mlp


def search(root: nn.Module, step: Callable[[Any], Any]) -> Found:
    found = SiteSearch(root)
    found.start()
    try:
        step(root)
    finally:
        found.stop()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in root.modules())
    return found.found()


def names(found: Found) -> list[str]:
    return [site.name for site in found.sites]


def reason(found: Found, name: str) -> str:
    return next(refusal.reason for refusal in found.refusals if refusal.name == name)


def root(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


@dataclass
class Boxed:
    """A dataclass."""

    x: Tensor


class Attributes:
    """An object with attributes."""

    def __init__(self, x: Tensor) -> None:
        self.inner = Boxed(x)


class Slots:
    """An object with slots."""

    __slots__ = ("inner",)

    def __init__(self, x: Tensor) -> None:
        self.inner = Boxed(x)


class Several(list[Boxed]):
    """A list of another type."""

    @property
    def inner(self) -> Boxed:
        return self[0]


X = torch.randn(4, 16)


@pytest.mark.parametrize("box", [Attributes(X), Slots(X), Several([Boxed(X)])], ids=lambda box: type(box).__name__)
def test_arguments_may_be_objects_and_are_left_alone(box: Any) -> None:
    def forward(self: Any, box: Any) -> Tensor:
        seen.append(type(box.inner.x))
        if type(box.inner.x) is not Tensor or not torch.is_grad_enabled():  # in a trace
            box.inner.x.add_(1)
        assert box.inner.x.sum() < 1e9  # reads values
        return self.net(box.inner.x)

    seen: list[type] = []
    before, inner = X.clone(), box.inner
    net = Net(forward, net=mlp(16, 8, 3))
    assert names(search(root(net=net), lambda root: root.net(box))) == ["net.net.0"]
    assert {kind.__name__ for kind in seen} == {"Tensor", "FakeTensor"}
    assert box.inner is inner
    assert torch.equal(X, before)


def test_values_of_arguments_count() -> None:
    def forward(self: Any, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.a(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])

    net = Net(forward, a=nn.Linear(3, 8), rnn=nn.GRU(8, 6, batch_first=True), head=mlp(6, 5, 2))
    lengths = torch.tensor([3, 5, 2, 5])
    assert names(search(root(net=net), lambda root: root.net(torch.randn(4, 5, 3), lengths))) == ["net.a", "net.head.0"]


def test_a_network_that_cannot_be_traced_is_searched_inside() -> None:
    def numbers() -> Iterator[Tensor]:
        yield X

    def forward(self: Any, once: Iterator[Tensor]) -> Tensor:
        return self.second(self.first(next(once)))

    net = Net(forward, first=mlp(16, 8, 4), second=mlp(4, 6, 2))
    found = search(root(net=net, other=mlp(16, 7, 2)), lambda root: (root.net(numbers()), root.other(X)))
    assert names(found) == ["net.first.0", "net.second.0", "other.0"]
    assert "searched in parts" in reason(found, "net")
    assert "an iterator can be read only once" in reason(found, "net")


def test_a_network_that_raises_in_a_trace_does_not_block_the_others() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if type(x) is not Tensor or not torch.is_grad_enabled():
            raise RuntimeError("not here")
        return self.b(self.a(x))

    module = root(odd=Net(forward, a=nn.Linear(16, 8), b=nn.Linear(8, 2)), other=mlp(16, 7, 2))
    found = search(module, lambda root: (root.odd(X), root.other(X)))
    assert names(found) == ["other.0"]
    assert "RuntimeError: not here" in reason(found, "odd")


def test_modules_without_parameters_are_never_traced() -> None:
    calls: list[type] = []

    class Metric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(type(x))
            return x

    found = search(root(net=mlp(16, 7, 2), metric=Metric()), lambda root: root.metric(root.net(X)))
    assert names(found) == ["net.0"]
    assert calls == [Tensor]


def test_weights_that_two_networks_share_are_not_widened() -> None:
    module = root(a=mlp(16, 8, 3), b=mlp(16, 8, 3))
    module.b[0].weight = module.a[0].weight
    found = search(module, lambda root: (root.a(X), root.b(X)))
    assert names(found) == []
    assert reason(found, "a.0") == "tied weights: a.0.weight and b.0.weight are one tensor"


def test_a_weight_that_another_call_feeds_is_not_widened() -> None:
    module = root(net=mlp(16, 8, 3))
    found = search(module, lambda root: (root.net(X), root.net[2](X[:, :8])))
    assert names(found) == []
    assert reason(found, "net.0") == "the call of net.2 uses it in a way that must not change"


def test_the_call_that_sees_all_readers_of_a_width_counts() -> None:
    def forward(self: Any, x: Tensor, both: bool) -> Any:
        hidden = F.relu(self.a(x))
        return (self.b(hidden), self.c(hidden)) if both else self.b(hidden)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(forward, a=nn.Linear(16, 8), b=nn.Linear(8, 3), c=nn.Linear(8, 2))

        def forward(self, x: Tensor) -> Any:
            return self.net(x, True)

    for step in (lambda root: (root.net(X, False), root(X)), lambda root: (root(X), root.net(X, False))):
        (site,) = search(Twice(), step).sites
        assert site.parameters() == ("net.a.weight", "net.a.bias", "net.b.weight", "net.c.weight")


def test_a_scripted_part_is_left_out_and_left_alone() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)))
    found = search(root(frozen=scripted, net=mlp(16, 7, 2)), lambda root: root.net(root.frozen(X)))
    assert names(found) == ["net.0"]
    assert all(type(parameter) is nn.Parameter for parameter in scripted.parameters())


def test_calls_are_searched_again_after_a_change() -> None:
    module = root(net=mlp(16, 8, 3))
    first = SiteSearch(module, keep=True)
    first.start()
    module.net(X)
    first.stop()
    module.net = mlp(16, 12, 3)
    again = first.again()
    assert again is not None
    assert [site.width for site in again.found().sites] == [12]
    module.net = mlp(5, 12, 3)
    assert again.again() is None


def test_a_forward_that_logs_does_not_log_a_trial() -> None:
    logged: list[Tensor] = []

    class Logs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(16, 8, 3)

        def log(self, name: str, value: Tensor) -> None:
            logged.append(value)

        def forward(self, x: Tensor) -> Tensor:
            self.log("mean", x.mean())
            return self.net(x)

    assert names(search(root(net=Logs()), lambda root: root.net(X))) == ["net.net.0"]
    assert [type(value) for value in logged] == [Tensor]
