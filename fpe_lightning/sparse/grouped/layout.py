"""The layout ``"grouped"``: a weight as dense blocks, at the size of its non-zeros."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from typing_extensions import override

from fpe_lightning.sparse.conv1d import has_inputs_first
from fpe_lightning.sparse.convert import store
from fpe_lightning.sparse.grouped.blocks import count_blocks, find_blocks, pack, unpack
from fpe_lightning.sparse.grouped.layers import (
    BLOCKS,
    GroupedConv1d,
    GroupedConv2d,
    GroupedConv3d,
    GroupedLinear,
    GroupedTransposed,
)
from fpe_lightning.sparse.layout import Layout, Structure, plain_class, register_layout

MOST_BLOCKS = 128
"""Every block costs a matrix product of its own; with more blocks than this the products are too thin to pay."""


class Grouped(Layout):
    """Blocks of consecutive rows that read the same inputs (see :mod:`fpe_lightning.sparse.grouped.blocks`)."""

    classes = {  # noqa: RUF012 - a constant
        nn.Linear: GroupedLinear,
        nn.Conv1d: GroupedConv1d,
        nn.Conv2d: GroupedConv2d,
        nn.Conv3d: GroupedConv3d,
    }
    transposed = GroupedTransposed
    buffers = (BLOCKS,)
    packs = True
    block_order = True
    kind = "grouped"
    phrase = "in blocks"

    @override
    def fit(self, module: nn.Module, mask: Tensor, rows: int = 0) -> Structure | str:
        if reason := self.cannot_hold(module):
            return reason
        # A layer that is stored in blocks already keeps them: another choice would change its rounding.
        if self.holds(module) and self.dense_shape(module) == mask.shape:
            return self.structure(module)
        mask = self.turn(module, mask)
        # The fewest blocks that say the same as the mask, and blocks of neurons that share a partition: where single
        # weights were pruned, rows of such a block differ, and the block reads what any of them does.
        flat = mask.flatten(2).any(2) if mask.dim() > 2 else mask
        candidates = [find_blocks(flat)]
        if rows and len(mask) % rows == 0:
            candidates.append(flat.view(len(mask) // rows, rows, -1).any(1))
        few = [inputs for inputs in candidates if len(inputs) <= MOST_BLOCKS and 2 * len(inputs) <= len(mask)]
        if not few:
            return (
                f"its {len(mask)} neurons have {len(candidates[-1])} different sets of inputs; use a partition that "
                'neurons share, such as partition="shared:4" or "contiguous:4", or layout="masked" where earlier '
                "splits left few inputs to each"
            )
        # A convolution has no kernel for a group without channels; a product of matrices has.
        if len(mask.shape) > 2:
            few = [inputs for inputs in few if bool(inputs.any(1).all())]
            if not few:
                return "some block of channels reads no input at all"
        # The fewest weights stored; the first of equals, which has the fewest blocks.
        best = min(few, key=lambda inputs: count_blocks(inputs, len(mask)))
        if bool(best.all()):
            return "every block reads every input"
        return {BLOCKS: best}

    @override
    def malformed(self, structure: Structure) -> str | None:
        blocks = structure[BLOCKS]
        if blocks.is_meta or blocks.dtype != torch.bool or blocks.dim() != 2 or not len(blocks):
            return f"its blocks are {blocks.dtype} {tuple(blocks.shape)} on {blocks.device}"
        return None

    @override
    def check(self, module: nn.Module, structure: Structure, mask: Tensor | None) -> str | None:
        if reason := self.cannot_hold(module):
            return reason
        idle = isinstance(module, _ConvNd) and not bool(structure[BLOCKS].any(1).all())
        return "some block of channels reads no input at all" if idle else None

    @override
    def stored_shape(self, structure: Structure, shape: torch.Size) -> torch.Size:
        blocks = structure[BLOCKS]
        if len(shape) == 2 and blocks.shape[1] == shape[0] != shape[1]:  # a weight that has its inputs first
            shape = torch.Size([shape[1], shape[0]])
        if len(shape) < 2 or len(blocks) > shape[0] or blocks.shape[1] != shape[1]:
            raise ValueError(f"blocks of shape {tuple(blocks.shape)} do not fit its shape {tuple(shape)}")
        return torch.Size([count_blocks(structure[BLOCKS], shape[0]) * math.prod(shape[2:]), 1])

    @override
    def dense_shape(self, module: nn.Module) -> torch.Size:
        if isinstance(module, GroupedTransposed):
            return torch.Size([module.fpe_blocks.shape[1], module.nf])
        return super().dense_shape(module)

    @override
    def turn(self, module: nn.Module, dense: Tensor) -> Tensor:
        return dense.transpose(0, 1) if has_inputs_first(plain_class(module)) else dense

    @override
    def pack(self, dense: Tensor, structure: Structure) -> Tensor:
        return pack(dense, structure[BLOCKS])

    @override
    def unpack(self, stored: Tensor, structure: Structure, shape: torch.Size) -> Tensor:
        return unpack(stored, structure[BLOCKS], shape)

    @override
    def detail(self, module: nn.Module) -> str:
        if not isinstance(module, GroupedLinear | GroupedTransposed):
            return ""
        return "in place" if module.fpe_plan.in_place else "gathered"


GROUPED = Grouped()
register_layout("grouped", GROUPED)


def structure_of(module: nn.Module) -> Tensor | None:
    """The blocks of a grouped layer, bool ``(blocks, inputs)``; None for every other module.

    Example:
        >>> structure_of(nn.Linear(4, 2)) is None
        True
    """
    return module._buffers.get(BLOCKS)


def group(module: nn.Module, inputs: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
    """Store a layer's weight in given blocks; see :func:`~fpe_lightning.sparse.convert.store`.

    Args:
        module: A linear layer or convolution, dense or masked; changed in place.
        inputs: Bool ``(blocks, inputs)``; every weight that may be non-zero has to lie in a block.
        optimizers: Optimizers that hold the weight; they hold the packed one afterwards, with its state.

    Raises:
        ValueError: If the layer has no grouped form, the blocks miss a weight, or some optimizer state has another
            shape than the weight. Nothing is changed then.

    Example:
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(4, 2)
        >>> blocks = torch.tensor([[True, True, False, False], [False, False, True, True]])
        >>> set_mask(layer, "weight", blocks)
        >>> group(layer, blocks)
        >>> layer
        GroupedLinear(in_features=4, out_features=2, bias=True, blocks=2)
        >>> layer.weight.shape
        torch.Size([4, 1])
    """
    store(module, "grouped", {BLOCKS: inputs}, optimizers)
