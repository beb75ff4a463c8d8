"""Widths pass through aggregation over nodes, and stop where an index tells units apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpe_lightning as fpe
from tests.support.nets import Net, proven, reasons

X = torch.randn(6, 16)
EDGES = torch.randint(6, (2, 12), generator=torch.Generator().manual_seed(0))


def columns(index: Tensor, like: Tensor) -> Tensor:
    return index[:, None].expand(-1, like.shape[1])


def mean_of_neighbours(h: Tensor, e: Tensor) -> Tensor:
    """As torch_geometric averages messages."""
    count = h.new_zeros(6).scatter_add_(0, e[1], h.new_ones(e.shape[1])).clamp_(min=1)
    return torch.zeros_like(h).scatter_add_(0, columns(e[1], h), h[e[0]]) / count[:, None].expand_as(h)


def adjacency(h: Tensor, e: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(e, torch.ones(e.shape[1], dtype=h.dtype), (6, 6), check_invariants=False)


PASS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index_add": lambda h, e: torch.zeros_like(h).index_add(0, e[1], h[e[0]]),
    "index_add into new zeros": lambda h, e: h.new_zeros(6, h.shape[1]).index_add_(0, e[1], h[e[0]]),
    "index_add to itself": lambda h, e: h.index_add(0, e[1], h[e[0]]),
    "scatter_add": lambda h, e: torch.zeros_like(h).scatter_add(0, columns(e[1], h), h[e[0]]),
    "scatter_reduce": lambda h, e: h.scatter_reduce(0, columns(e[1], h), h[e[0]], "amax", include_self=False),
    "mean of neighbours": mean_of_neighbours,
    "index_select": lambda h, e: h.index_select(0, e[0]),
    "gather": lambda h, e: h.gather(0, columns(e[0], h)),
    "index_put": lambda h, e: h.new_zeros(6, h.shape[1]).index_put((e[1],), h[e[0]], accumulate=True),
    "segment_reduce": lambda h, e: torch.segment_reduce(h, "mean", lengths=torch.tensor([2, 4])),
    "dense adjacency": lambda h, e: torch.eye(6, dtype=h.dtype) @ h,
    "sparse.mm": lambda h, e: torch.sparse.mm(adjacency(h, e), h),
    "sparse @": lambda h, e: adjacency(h, e) @ h,
}
END: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "over the units": (lambda h, e: torch.zeros_like(h).index_add(1, torch.arange(8), h), "picks entries"),
    "an index for each unit": (
        lambda h, e: h.gather(0, torch.arange(8).remainder(6).expand(6, 8).clone()),
        "picks other entries for each of its units",
    ),
    "one-hot rows": (
        lambda h, e: h * torch.zeros_like(h).scatter_(1, torch.zeros(6, 1, dtype=torch.long), 1.0),
        "meets an axis that no weight computes",
    ),
    "added to an input": (
        lambda h, e: X[:, :8].clone().index_add(0, e[1], h[e[0]]),
        "meets an axis that no weight computes",
    ),
}


def net(way: Callable[[Tensor, Tensor], Tensor]) -> Net:
    def forward(self: Any, x: Tensor, e: Tensor) -> Tensor:
        return self.b(F.relu(way(self.a(x), e)))

    return Net(forward, a=nn.Linear(16, 8), b=nn.Linear(8, 3))


@pytest.mark.parametrize("name", PASS)
def test_a_width_passes(name: str) -> None:
    assert [site.name for site in proven(net(PASS[name]), (X, EDGES))] == ["a"]


@pytest.mark.parametrize("name", END)
def test_a_width_ends(name: str) -> None:
    way, reason = END[name]
    assert fpe.find_sites(net(way), (X, EDGES)) == []
    assert reason in reasons(net(way), (X, EDGES))["a"]


def test_experts_in_groups_of_rows() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        ends = torch.tensor([16, 32], dtype=torch.int32)
        return torch._grouped_mm(F.relu(torch._grouped_mm(x, self.a, offs=ends)), self.b, offs=ends)

    a, b = (nn.Parameter(torch.randn(2, *shape, dtype=torch.bfloat16)) for shape in ((16, 32), (32, 16)))
    model = Net(forward)
    model.a, model.b = a, b
    x = torch.randn(32, 16, dtype=torch.bfloat16)
    (site,) = fpe.find_sites(model, x)
    assert [(axis.parameter, axis.dim) for axis in site.axes()] == [("a", 2), ("b", 1)]
