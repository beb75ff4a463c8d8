"""Layers that store and compute the non-zeros of a block structure alone: ``layout="grouped"``.

Parameter, gradient and optimizer state have the size of the non-zeros. The structure is the buffer ``fpe_blocks``
(see :mod:`fpe_lightning.sparse.grouped.blocks`), the parameter ``weight`` is packed. Single weights that are zero
inside of a block have a mask of the packed shape, as in any masked layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.grouped.blocks import block_rows
from fpe_lightning.sparse.grouped.plan import Plan, make_plan
from fpe_lightning.sparse.grouped.products import block_linear
from fpe_lightning.sparse.prepared import PreparedModule

BLOCKS = "fpe_blocks"
"""Name of the buffer that holds the structure."""


class GroupedModule(PreparedModule):
    """Common to all grouped layers."""

    fpe_blocks: Tensor

    @override
    def prepare(self) -> None:
        if not self.fpe_blocks.is_meta:
            self.make_plan()

    def make_plan(self) -> None:
        """Decide how to compute with the structure that the buffer holds now."""
        raise NotImplementedError

    def as_leaf(self, input: torch.fx.Proxy) -> Any:
        """One node of a graph that torch.fx traces, as the plain layer is one.

        Operators in its place would have to hold the plan, which moves and loads could not reach.
        """
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocks={len(self.fpe_blocks)}"


class GroupedLinear(GroupedModule, nn.Linear):
    """An ``nn.Linear`` made of dense blocks, computed by products on slices."""

    fpe_plain = nn.Linear
    fpe_plan: Plan

    @override
    def make_plan(self) -> None:
        self.fpe_plan = make_plan(self.fpe_blocks, self.out_features)

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        return block_linear(input, self.weight, self.bias, self.fpe_plan)


class GroupedTransposed(GroupedModule):
    """The same for a layer whose dense weight has its inputs first; in blocks it has its neurons first."""

    nf: int
    weight: Tensor
    bias: Tensor
    fpe_plan: Plan

    @override
    def make_plan(self) -> None:
        self.fpe_plan = make_plan(self.fpe_blocks, self.nf)

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        return block_linear(input, self.weight, self.bias, self.fpe_plan)


@dataclass(frozen=True)
class _ConvPlan:
    """How a grouped convolution reads its channels.

    Attributes:
        gather: int64, the channels that the blocks read, one block after the other; None where they are in order.
        calls: For each call of a convolution: blocks, first row, rows of a block, fan-in of a block.
    """

    gather: Tensor | None
    calls: tuple[tuple[int, int, int, int], ...]


class _GroupedConv(GroupedModule):
    """A convolution made of dense blocks of channels, computed by grouped convolutions."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    fpe_plan: _ConvPlan

    @override
    def make_plan(self) -> None:
        # Channels of all blocks in a row; where that is the order of the input, nothing has to be gathered.
        index = torch.cat([block.nonzero().squeeze(1) for block in self.fpe_blocks])
        in_order = torch.arange(self.in_channels, device=index.device)
        calls: list[tuple[int, int, int, int]] = []
        fan_in = self.fpe_blocks.sum(1).tolist()
        for (row, rows), fan in zip(block_rows(self.out_channels, len(fan_in)), fan_in, strict=True):
            # Blocks of one shape that follow each other are the groups of one convolution.
            if calls and calls[-1][2:] == (rows, fan):
                calls[-1] = (calls[-1][0] + 1, *calls[-1][1:])
            else:
                calls.append((1, row, rows, fan))
        self.fpe_plan = _ConvPlan(None if torch.equal(index, in_order) else index, tuple(calls))

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        spatial = len(self.kernel_size)
        # Torch takes a single picture without a batch axis.
        batch = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        module: Any = self
        padding = module.padding
        if module.padding_mode != "zeros":
            batch, padding = F.pad(batch, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
        plan = self.fpe_plan
        # Channels in the order of the blocks, so that each block reads a stretch of them.
        source = batch if plan.gather is None else batch.index_select(1, plan.gather)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        outputs, offset, channel = [], 0, 0
        for blocks, row, rows, fan in plan.calls:
            # Each call reads the next stretch of the packed weight and of the gathered channels.
            size = blocks * rows * fan * math.prod(self.kernel_size)
            weight = module.weight.narrow(0, offset, size).view(blocks * rows, fan, *self.kernel_size)
            bias = None if module.bias is None else module.bias.narrow(0, row, blocks * rows)
            read = source.narrow(1, channel, blocks * fan)
            outputs.append(convolve(read, weight, bias, module.stride, padding, module.dilation, blocks))
            offset += size
            channel += blocks * fan
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return result if input.dim() == spatial + 2 else result.squeeze(0)


class GroupedConv1d(_GroupedConv, nn.Conv1d):
    """An ``nn.Conv1d`` made of dense blocks of channels."""

    fpe_plain = nn.Conv1d


class GroupedConv2d(_GroupedConv, nn.Conv2d):
    """An ``nn.Conv2d`` made of dense blocks of channels."""

    fpe_plain = nn.Conv2d


class GroupedConv3d(_GroupedConv, nn.Conv3d):
    """An ``nn.Conv3d`` made of dense blocks of channels."""

    fpe_plain = nn.Conv3d
