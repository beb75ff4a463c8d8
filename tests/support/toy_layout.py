"""A layout from outside of the package: the weights that may be non-zero as a list, with their places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpe_lightning.sparse import LAYOUTS, Layout, register_layout


class ToyLinear(nn.Linear):
    """An ``nn.Linear`` with a list of weights."""

    fpe_plain = nn.Linear
    fpe_toy: Tensor

    def forward(self, input: Tensor) -> Tensor:
        dense = self.weight.new_zeros(self.out_features * self.in_features)
        dense = dense.index_put((self.fpe_toy,), self.weight.squeeze(1))
        return F.linear(input, dense.view(self.out_features, self.in_features), self.bias)


class Toy(Layout):
    """Holds any mask of a linear layer."""

    classes = {nn.Linear: ToyLinear}  # noqa: RUF012 - a constant
    buffers = ("fpe_toy",)
    packs = True
    kind = "toy"
    phrase = "as a list"

    def fit(self, module: nn.Module, mask: Tensor, rows: int = 0) -> dict[str, Tensor] | str:
        return {"fpe_toy": mask.flatten().nonzero().squeeze(1)}

    def stored_shape(self, structure: dict[str, Tensor], shape: torch.Size) -> torch.Size:
        return torch.Size([len(structure["fpe_toy"]), 1])

    def pack(self, dense: Tensor, structure: dict[str, Tensor]) -> Tensor:
        return dense.flatten()[structure["fpe_toy"].to(dense.device)].unsqueeze(1)

    def unpack(self, stored: Tensor, structure: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return stored.new_zeros(shape.numel()).index_put((structure["fpe_toy"],), stored.squeeze(1)).view(shape)


@contextmanager
def toy_layout() -> Iterator[None]:
    """Register the layout for the time of a block of code."""
    register_layout("toy", Toy())
    try:
        yield
    finally:
        del LAYOUTS._found["toy"]
