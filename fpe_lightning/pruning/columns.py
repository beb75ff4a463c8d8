"""Prune whole columns of blocks, so that the rest can be stored in dense blocks.

Inputs go from all neurons of a block together (children of one number in one group of neurons that share a
partition), in each block those of smallest norm. Where blocks cannot lose equally many, those that read the most lose
one more, then the first children of all groups, so that blocks stay of one size. Where whole columns do not come out
even (kernels), single weights of smallest magnitude make up for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fpe_lightning.pruning.magnitude import comparable, remove_smallest


class Columns(Protocol):
    """The part of a producer's weight that belongs to one site, as blocks whose rows read the same inputs.

    Attributes:
        alpha: Children of each neuron; as many blocks of the first ones come first, then those of the second ones.
        column: Weights in one column of a block.
    """

    alpha: int
    column: int

    def count(self) -> int:
        """Weights that may be non-zero."""

    def reads(self) -> Tensor:
        """Bool ``(blocks, inputs)``: the inputs of each block."""

    def norms(self) -> Tensor:
        """``(blocks, inputs)``: the sum of squares of each column."""

    def without(self, goes: Tensor) -> Columns:
        """The same without the columns that are True in ``goes``, bool ``(blocks, inputs)``."""


@dataclass
class Incoming(Columns):
    """Columns of a weight in its own shape.

    Attributes:
        weight: ``(rows, inputs, k)``; rows of a block stand together, ``k`` are kernel entries.
        mask: Bool, of the same shape.
        block: Rows of a block.
        alpha: Children of each neuron.
    """

    weight: Tensor
    mask: Tensor
    block: int
    alpha: int = 1

    def __post_init__(self) -> None:
        self.column = self.block * self.weight.shape[2]

    def count(self) -> int:
        """Weights that may be non-zero."""
        return int(self.mask.count_nonzero())

    def reads(self) -> Tensor:
        """Bool ``(blocks, inputs)``: the inputs of each block."""
        return self._by_block(self.mask).any(3).any(1)

    def norms(self) -> Tensor:
        """``(blocks, inputs)``: the sum of squares of each column."""
        square = self.weight.detach().to(comparable([self.weight])).square() * self.mask
        return self._by_block(square).sum((1, 3), dtype=summed_in(square))

    def without(self, goes: Tensor) -> Incoming:
        """The same without some columns."""
        blocks, inputs = goes.shape
        mask = self._by_block(self.mask) & ~goes.view(blocks, 1, inputs, 1)
        return replace(self, mask=mask.view(self.mask.shape))

    def _by_block(self, tensor: Tensor) -> Tensor:
        return tensor.view(-1, self.block, *tensor.shape[1:])


def summed_in(square: Tensor) -> torch.dtype:
    """The dtype to add squares in: in double precision a sum of singles has one value in any order.

    Example:
        >>> summed_in(torch.zeros(1))
        torch.float64
    """
    return square.dtype if square.device.type == "mps" else torch.float64


AnyColumns = TypeVar("AnyColumns", bound=Columns)


def remove_columns(incoming: Sequence[Incoming], count: int) -> list[Tensor]:
    """Drop ``count`` weights from the masks of several producers, as whole columns of blocks as far as that goes.

    Args:
        incoming: The producers of a site. Each gives up a share in proportion to its weights.
        count: How many weights to drop.

    Returns:
        New masks with exactly ``count`` fewer entries.

    Raises:
        ValueError: If a block would be left without inputs.

    Example:
        >>> weight = torch.tensor([[0.5, 0.1, 0.7], [0.5, 0.2, 0.7]]).unsqueeze(2)
        >>> remove_columns([Incoming(weight, torch.ones(2, 3, 1, dtype=torch.bool), block=2)], 2)[0].squeeze(2)
        tensor([[ True, False,  True],
                [ True, False,  True]])
    """
    parts, rest = remove_whole_columns(incoming, count)
    return remove_smallest([part.weight for part in parts], [part.mask for part in parts], rest)


def remove_whole_columns(incoming: Sequence[AnyColumns], count: int) -> tuple[list[AnyColumns], int]:
    """Drop whole columns from several producers, and return the rest, and how many weights have yet to go.

    Args:
        incoming: The producers of a site. Each gives up a share in proportion to its weights.
        count: How many weights to drop.

    Raises:
        ValueError: If a block would be left without inputs.
    """
    alive = [part.count() for part in incoming]
    kept = []
    for part, own in zip(incoming, alive, strict=True):
        # In proportion to its weights, in whole columns.
        share = count * own // max(sum(alive), 1)
        kept.append(_without_columns(part, share // part.column))
    rest = count - sum(alive) + sum(part.count() for part in kept)
    column = min(part.column for part in incoming)
    for position, part in enumerate(kept):  # shares were rounded down: a few whole columns may still fit
        if rest >= column and rest >= part.column:
            kept[position] = _without_columns(part, rest // part.column)
            rest -= part.count() - kept[position].count()
    return kept, rest


def _without_columns(part: AnyColumns, columns: int) -> AnyColumns:
    """Drop a number of whole columns, shared out evenly over the blocks."""
    reads = part.reads()
    blocks, inputs = reads.shape
    each, more = divmod(columns, blocks)
    fan_in = reads.sum(1)
    if int(fan_in.min()) <= each + (more > 0):
        raise ValueError(
            f"Cannot remove {columns} columns of {blocks} blocks that read {int(fan_in.min())} inputs and more: "
            "too little is left."
        )
    # The rank of each column in its block by norm; columns that are not read come last.
    order = part.norms().masked_fill(~reads, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(inputs, device=order.device).expand_as(order))
    goes = rank < each
    if more:
        # A remainder goes to blocks of the first children, and among these to those that read the most.
        child = torch.arange(blocks, device=order.device) * part.alpha // blocks
        first = (child - fan_in * part.alpha).argsort(stable=True)[:more]
        goes[first] |= rank[first] == each
    return part.without(goes)  # type: ignore[return-value]
