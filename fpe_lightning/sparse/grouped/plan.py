"""How a block structured product reads its inputs: in place where they are consecutive, else from gathered copies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpe_lightning.sparse.grouped.blocks import block_rows

MOST_RUNS = 8
"""A block whose inputs form more stretches than this (on average) is read from a gathered copy."""

SHORTEST_RUN = 16
"""Below this average length of a stretch a gathered copy is faster than many thin products."""


@dataclass(frozen=True)
class Run:
    """Consecutive inputs of one block.

    Attributes:
        source: First input.
        column: First column of the block that they meet.
        length: How many.
    """

    source: int
    column: int
    length: int


@dataclass(frozen=True)
class Block:
    """One dense block.

    Attributes:
        row: First row (output).
        rows: Number of rows.
        offset: Where it begins in the packed weight.
        fan_in: Inputs of each row.
        runs: Its inputs; together ``fan_in``.
    """

    row: int
    rows: int
    offset: int
    fan_in: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Batch:
    """Blocks of one shape, one after the other, for one batched product.

    Attributes:
        count: Number of blocks.
        rows: Rows of each.
        fan_in: Inputs of each row.
        row: First row of the first block.
        offset: Where the first block begins in the packed weight.
        source: Where its inputs begin in :attr:`Plan.every`.
    """

    count: int
    rows: int
    fan_in: int
    row: int
    offset: int
    source: int


@dataclass(frozen=True)
class Plan:
    """How to compute a block structured product; made once for each structure.

    Attributes:
        rows: Outputs.
        width: Inputs.
        blocks: The dense blocks, in the order of rows.
        in_place: Whether inputs are read where they are; else those of a few blocks at a time are gathered.
        once: Whether every input is read by exactly one block.
        every: int64, the inputs of each block, one block after the other.
        batches: The blocks again, joined into batched products.
    """

    rows: int
    width: int
    blocks: tuple[Block, ...]
    in_place: bool
    once: bool
    every: Tensor
    batches: tuple[Batch, ...]


def make_plan(inputs: Tensor, rows: int) -> Plan:
    """Plan the product with the structure ``inputs``.

    Args:
        inputs: Bool ``(blocks, inputs)``; see :mod:`fpe_lightning.sparse.grouped.blocks`.
        rows: Rows of the weight.

    Example:
        >>> inputs = torch.tensor([[True, True, False, False], [False, False, True, True]])
        >>> [block.runs for block in make_plan(inputs, 6).blocks]
        [(Run(source=0, column=0, length=2),), (Run(source=2, column=0, length=2),)]
    """
    fan_in = inputs.sum(1).tolist()
    runs = [_runs(block) for block in inputs.cpu()]
    count = sum(map(len, runs))
    # Few and long stretches are read in place. A product for each of many short ones takes longer than one copy.
    in_place = count <= len(runs) or (count <= MOST_RUNS * len(runs) and sum(fan_in) >= SHORTEST_RUN * count)
    blocks, offset = [], 0
    for (row, height), fan, read in zip(block_rows(rows, len(inputs)), fan_in, runs, strict=True):
        blocks.append(Block(row, height, offset, fan, tuple(read)))
        offset += height * fan
    # With every input in exactly one block, gradients of inputs are written; else they are added up.
    every = torch.cat([block.nonzero().squeeze(1) for block in inputs])
    once = bool((inputs.sum(0) == 1).all())
    return Plan(rows, inputs.shape[1], tuple(blocks), in_place, once, every, _batches(blocks))


def _batches(blocks: list[Block]) -> tuple[Batch, ...]:
    """Join blocks of one shape that follow each other."""
    found: list[Batch] = []
    source = 0
    for block in blocks:
        last = found[-1] if found else None
        # One batched product takes blocks of one shape whose rows, weights and inputs are consecutive.
        same = last is not None and (last.rows, last.fan_in) == (block.rows, block.fan_in)
        if last is not None and same and last.row + last.count * last.rows == block.row:
            found[-1] = replace(last, count=last.count + 1)
        elif block.fan_in:
            found.append(Batch(1, block.rows, block.fan_in, block.row, block.offset, source))
        source += block.fan_in
    return tuple(found)


def _runs(block: Tensor) -> list[Run]:
    """The stretches of consecutive inputs of one block."""
    # +1 where a stretch begins, -1 behind its end.
    edges = torch.diff(block.int(), prepend=block.new_zeros(1).int(), append=block.new_zeros(1).int())
    starts, ends = (edges == 1).nonzero().squeeze(1).tolist(), (edges == -1).nonzero().squeeze(1).tolist()
    found: list[Run] = []
    column = 0
    for start, end in zip(starts, ends, strict=True):
        found.append(Run(start, column, end - start))
        column += end - start
    return found
