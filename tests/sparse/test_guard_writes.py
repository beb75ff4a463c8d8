"""Ways to write to a split weight: masks hold after the next step, or a count says that they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.checkpoint import checkpoint

import fpe_lightning as fpe
from fpe_lightning.sparse import MaskWarning, check_masks

X = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


def split(layout: str = "masked") -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 4))
    fpe.expand(net, fpe.Paper(alpha=2, layout=layout), example_inputs=X)
    return net


def true(net: nn.Module) -> int:
    return sum(int(each.count_nonzero()) for each in net.parameters())


def dense_state(net: nn.Module) -> dict[str, Tensor]:
    return {k: torch.ones_like(v) if v.is_floating_point() else v for k, v in net.state_dict().items()}


WRITES: dict[str, Callable[[Any], Any]] = {
    "data.copy_": lambda net: net[0].weight.data.copy_(torch.ones_like(net[0].weight)),
    "no_grad": lambda net: torch.no_grad()(net[0].weight.fill_)(1.0),
    "vector_to_parameters": lambda net: vector_to_parameters(
        parameters_to_vector(net.parameters()) + 1, net.parameters()
    ),
    "a dense state_dict": lambda net: net.load_state_dict(dense_state(net)),
    "swap": lambda net: setattr(net[0].weight, "data", torch.ones_like(net[0].weight)),
}


@pytest.mark.parametrize("way", WRITES)
def test_a_write_is_counted_and_the_next_step_cleans_it(way: str) -> None:
    net = split()
    before = fpe.count_nonzeros(net)
    WRITES[way](net)
    if true(net) > before:
        with pytest.warns(MaskWarning, match=r"masked entries of `.*` are not zero.*`fpe.merge\(model\)`"):
            assert fpe.count_nonzeros(net) >= true(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(X).sum().backward()
    optimizer.step()
    check_masks(net)
    assert true(net) <= fpe.count_nonzeros(net) == before


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RAdam])
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_ways_of_stepping(kind: Any, options: dict[str, bool]) -> None:
    if kind is torch.optim.RAdam and "fused" in options:
        pytest.skip("RAdam of torch is not fused")
    net = split()
    before, optimizer = fpe.count_nonzeros(net), kind(net.parameters(), lr=0.01, weight_decay=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        checkpoint(net, X, use_reentrant=False).pow(2).sum().backward()
        optimizer.step()
    assert true(net) <= before
    check_masks(net)


def test_copies_in_the_middle_and_functional_calls() -> None:
    net = split()
    optimizer, before = torch.optim.AdamW(net.parameters(), lr=0.01), fpe.count_nonzeros(net)
    net(X).sum().backward()
    optimizer.step()
    twin, optimizer = copy.deepcopy((net, optimizer))
    for _ in range(3):
        optimizer.zero_grad()
        values = dict(twin.named_parameters())
        torch.func.functional_call(twin, values, (X,)).pow(2).sum().backward()
        optimizer.step()
    assert true(twin) <= fpe.count_nonzeros(twin) == before
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


class Sage(nn.Module):
    """GraphSAGE adds what two weights make of a node and of its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.near, self.head = nn.Linear(64, 8), nn.Linear(64, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.own(x) + self.near(x.roll(1, 0))).relu())


@pytest.mark.parametrize("prune", ["total", "incoming"])
def test_sums_of_two_weights_count_right(prune: str) -> None:
    torch.manual_seed(0)
    net = Sage()
    before = true(net)
    sites = fpe.find_sites(net, X, streams=True)
    report = fpe.expand(net, fpe.Paper(alpha=2, prune=prune), sites=sites)
    assert (net.own.out_features, net.near.out_features, net.head.in_features) == (16, 16, 16)
    assert report.nonzeros_before == report.nonzeros_after == before
    assert true(net) <= before
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    net(X).sum().backward()
    optimizer.step()
    assert true(net) <= before
