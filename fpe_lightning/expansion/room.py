"""Structured ways to make room: whole columns and whole blocks go, so that what is left can be stored densely.

- ``"columns"``: inputs go from all neurons of a block at once (children of one number in one group of neurons that
  share a partition), in each block those of smallest norm. Where blocks cannot lose equally many, those that read
  the most lose one more, then the first children of all groups, so that blocks stay of one size. Outgoing copies all
  stay.
- ``"blocks"``: outgoing weights are handed out as incoming ones are. Outputs are cut into ``alpha`` stretches, and of
  the copies that the children of a neuron hold of a stretch one stays, for each group of neurons that of another child.
  Copies tie in magnitude, so magnitude has no say. What the copies of biases and norms cost goes as in ``"columns"``.

Where whole columns do not come out even (kernels), single weights of smallest magnitude make up for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpe_lightning.expansion.budget import remove_smallest
from fpe_lightning.sparse.blocks import block_rows


@dataclass
class Incoming:
    """The part of a producer's weight that belongs to one site.

    Attributes:
        weight: ``(rows, inputs, k)``; rows of a block stand together, ``k`` are kernel entries.
        mask: Bool, of the same shape.
        block: Rows of a block.
        alpha: Blocks that make up a group of neurons, one for each child.
    """

    weight: Tensor
    mask: Tensor
    block: int
    alpha: int = 1


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
    alive = [int(part.mask.sum()) for part in incoming]
    kept = []
    for position, part in enumerate(incoming):
        share = count * alive[position] // max(sum(alive), 1)
        kept.append(_without_columns(part, share // (part.block * part.weight.shape[2])))
    rest = count - sum(alive) + sum(int(mask.sum()) for mask in kept)
    column = min(part.block * part.weight.shape[2] for part in incoming)
    for position, part in enumerate(incoming):  # shares were rounded down: a few whole columns may still fit
        size = part.block * part.weight.shape[2]
        if rest >= column and rest >= size:
            more = _without_columns(replace(part, mask=kept[position]), rest // size)
            rest -= int(kept[position].sum()) - int(more.sum())
            kept[position] = more
    return remove_smallest([part.weight for part in incoming], kept, rest)


def _without_columns(part: Incoming, columns: int) -> Tensor:
    """Drop a number of whole columns, shared out evenly over the blocks."""
    rows, inputs, kernel = part.weight.shape
    blocks = rows // part.block
    mask = part.mask.view(blocks, part.block, inputs, kernel)
    reads = mask.any(3).any(1)
    each, more = divmod(columns, blocks)
    fan_in = reads.sum(1)
    if int(fan_in.min()) <= each + (more > 0):
        raise ValueError(
            f"Cannot remove {columns} columns of {blocks} blocks that read {int(fan_in.min())} inputs and more: "
            "too little is left."
        )
    square = part.weight.detach().to(torch.promote_types(part.weight.dtype, torch.float32)).square() * part.mask
    norm = square.view(blocks, part.block, inputs, kernel).sum((1, 3)).masked_fill(~reads, torch.inf)
    order = norm.argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(inputs, device=order.device).expand_as(order))
    goes = rank < each
    if more:
        child = torch.arange(blocks, device=order.device) % part.alpha
        first = (child - fan_in * part.alpha).argsort(stable=True)[:more]
        goes[first] |= rank[first] == each
    return (mask & ~goes.view(blocks, 1, inputs, 1)).view(part.mask.shape)


def hand_out_outgoing(child: Tensor, group: Tensor, outputs: int, alpha: int) -> Tensor:
    """Which copies of outgoing weights stay, for the rule ``"blocks"``.

    Args:
        child: int64 ``(hidden,)``, the child number of each hidden unit, ``-1`` for units that are not split.
        group: int64 ``(hidden,)``, the group of neurons that its parent belongs to.
        outputs: Number of outputs.
        alpha: Children of each neuron.

    Returns:
        Bool ``(outputs, hidden)`` with one True among the copies of each outgoing weight.

    Example:
        >>> hand_out_outgoing(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), 2, 2).int()
        tensor([[1, 0, 0, 1],
                [0, 1, 1, 0]], dtype=torch.int32)
    """
    stretch = torch.cat([torch.full((count,), part) for part, (_, count) in enumerate(block_rows(outputs, alpha))])
    stays = (stretch.unsqueeze(1) + group) % alpha == child
    return stays | (child < 0)
