"""Block structure: consecutive rows of a weight that read the same inputs.

A structure is a bool tensor ``inputs`` of shape ``(blocks, inputs of the layer)``: the rows of the weight are cut
into as many consecutive stretches as there are blocks, as evenly as possible (the first ones have one row more where
the division leaves a remainder). All rows of a block read the inputs that are True: it is a mask with equal rows
written once.

The packed form of a weight holds the blocks one after the other, each row by row, in a column of shape
``(non-zeros, 1)``. It has two axes, so that rules such as "decay matrices alone" still see a weight. The non-zeros are
along the first, so that sharding cuts it evenly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def block_rows(rows: int, blocks: int) -> list[tuple[int, int]]:
    """First row and number of rows of each block.

    Example:
        >>> block_rows(7, 3)
        [(0, 3), (3, 2), (5, 2)]
    """
    size, more = divmod(rows, blocks)
    return [(block * size + min(block, more), size + (block < more)) for block in range(blocks)]


def find_blocks(mask: Tensor) -> Tensor:
    """The structure with the fewest blocks that says the same as a mask; in the worst case every row is a block.

    Args:
        mask: Bool ``(rows, inputs)``, or ``(rows, inputs, ...)`` where all entries of a kernel are equal.

    Returns:
        Bool ``(blocks, inputs)``.

    Raises:
        ValueError: If a kernel is masked in part.

    Example:
        >>> find_blocks(torch.tensor([[True, False], [True, False], [False, True], [False, True]]))
        tensor([[ True, False],
                [False,  True]])
    """
    # A block has whole kernels: one bool for each pair of channels.
    flat = mask.flatten(2).any(2) if mask.dim() > 2 else mask
    if mask.dim() > 2 and not torch.equal(mask.flatten(2).all(2), flat):
        raise ValueError("The mask keeps some entries of a kernel and drops others, which is no block structure.")
    rows = len(flat)
    # The rows that differ from the row before them: each has to begin a block.
    changes = [0, *((flat[1:] != flat[:-1]).any(1).nonzero().squeeze(1) + 1).tolist()]
    return flat[_starts(changes, rows)].clone()


def join_blocks(inputs: Tensor, rows: int) -> Tensor:
    """The structure with the fewest blocks that says the same as one whose blocks all have ``rows`` rows.

    Example:
        >>> join_blocks(torch.tensor([[True, False], [True, False], [False, True], [False, True]]), 3)
        tensor([[ True, False],
                [False,  True]])
    """
    changes = [0, *(rows * ((inputs[1:] != inputs[:-1]).any(1).nonzero().squeeze(1) + 1)).tolist()]
    return inputs[[start // rows for start in _starts(changes, rows * len(inputs))]]


def _starts(changes: list[int], rows: int) -> list[int]:
    """First rows of the fewest blocks of equal size that begin wherever something changes."""
    # As many blocks as changes, if the uneven cut of `block_rows` hits them all; else blocks of the largest size that
    # divides every change.
    for blocks in (len(changes), rows // math.gcd(rows, *changes)):
        starts = [start for start, _ in block_rows(rows, blocks)]
        if set(changes) <= set(starts):
            return starts
    return list(range(rows))


def expand_blocks(inputs: Tensor, rows: int) -> Tensor:
    """The bool mask ``(rows, inputs)`` that a structure stands for.

    Example:
        >>> expand_blocks(torch.eye(2, dtype=torch.bool), 4).int()
        tensor([[1, 0],
                [1, 0],
                [0, 1],
                [0, 1]], dtype=torch.int32)
    """
    counts = torch.tensor([count for _, count in block_rows(rows, len(inputs))], device=inputs.device)
    return inputs.repeat_interleave(counts, dim=0)


def count_blocks(inputs: Tensor, rows: int) -> int:
    """Number of ``(row, input)`` pairs that a structure keeps.

    Example:
        >>> count_blocks(torch.eye(2, dtype=torch.bool), 4)
        4
    """
    # One transfer from the device for all blocks.
    fan_in = inputs.sum(1).tolist()
    return sum(count * fan for (_, count), fan in zip(block_rows(rows, len(inputs)), fan_in, strict=True))


def pack(dense: Tensor, inputs: Tensor) -> Tensor:
    """The entries of a weight that a structure keeps, packed.

    Args:
        dense: ``(rows, inputs, ...)``, any dtype.
        inputs: Bool ``(blocks, inputs)``.

    Returns:
        ``(non-zeros, 1)``.

    Example:
        >>> pack(torch.arange(4).view(2, 2), torch.eye(2, dtype=torch.bool)).flatten()
        tensor([0, 3])
    """
    kernel = dense[0, 0].numel() if dense.dim() > 2 else 1
    # Block by block into one allocation, so that no second copy of the weight is made.
    packed = dense.new_empty(count_blocks(inputs, len(dense)) * kernel, 1)
    done = 0
    for (start, rows), index in zip(block_rows(len(dense), len(inputs)), _indices(inputs), strict=True):
        block = dense.narrow(0, start, rows).index_select(1, index.to(dense.device))
        packed.narrow(0, done, block.numel()).copy_(block.reshape(-1, 1))
        done += block.numel()
    return packed


def unpack(packed: Tensor, inputs: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`pack`: the weight of the given shape, zero (or False) where the structure keeps nothing.

    Differentiable in ``packed``.

    Example:
        >>> inputs = torch.eye(2, dtype=torch.bool)
        >>> unpack(torch.tensor([[1.0], [2.0]]), inputs, torch.Size([2, 2]))
        tensor([[1., 0.],
                [0., 2.]])
    """
    # What no block holds stays zero; `index_copy_` is differentiable in the block.
    dense = packed.new_zeros(shape)
    done = 0
    for (start, rows), index in zip(block_rows(shape[0], len(inputs)), _indices(inputs), strict=True):
        size = rows * len(index) * math.prod(shape[2:])
        block = packed.narrow(0, done, size).reshape(rows, len(index), *shape[2:])
        dense.narrow(0, start, rows).index_copy_(1, index.to(packed.device), block)
        done += size
    return dense


def _indices(inputs: Tensor) -> Iterator[Tensor]:
    for block in inputs:
        yield block.nonzero().squeeze(1)
