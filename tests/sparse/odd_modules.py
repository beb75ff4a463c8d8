"""Masked modules of known and of unknown classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fpe_lightning.sparse import set_mask


def half(shape: Iterable[int], seed: int = 0) -> Tensor:
    """A bool mask with True and False entries."""
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)) < 0.5


class Scaled(nn.Linear):
    """A subclass with a forward and a state of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.full((outputs,), 2.0))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


class TwoWeights(nn.Module):
    """A module of no known class, with two bare parameters, called with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(6, 4))
        self.down = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor, *, gain: float = 1.0) -> Tensor:
        return gain * (x @ self.up.T).tanh() @ self.down.T


def masked_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Scaled(6, 4), nn.Tanh(), TwoWeights())
    set_mask(net[0], "weight", half((6, 4)))
    set_mask(net[2], "weight", half((4, 6)))
    set_mask(net[4], "up", half((6, 4)))
    set_mask(net[4], "down", half((3, 6)))
    return net
