"""How a block structured product reads its inputs: in place where they are consecutive, else from one gathered copy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fpe_lightning.sparse.blocks import block_rows

MOST_RUNS = 8
"""A block whose inputs form more stretches than this (on average) is read from a gathered copy."""

SHORTEST_RUN = 16
"""Below this average length of a stretch a gathered copy is faster than many thin products."""


@dataclass(frozen=True)
class Run:
    """Consecutive inputs of one block.

    Attributes:
        source: First input, counted in the tensor that is read (the layer's input, or the gathered copy).
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
        runs: What it reads; together ``fan_in`` inputs.
    """

    row: int
    rows: int
    offset: int
    fan_in: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Batch:
    """Blocks of one shape, one after the other: what one batched product computes for a single row of inputs.

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
    """A block structured product, worked out once.

    Attributes:
        rows: Outputs.
        width: Inputs.
        blocks: The dense blocks, in the order of rows.
        gather: int64, the inputs that the blocks read, in their order; None where they are read in place.
        scatter: Stretches ``(start, length)`` of ``gather`` without duplicates: what may be added back at once.
        every: int64, the inputs of each block, one block after the other; for a single row of inputs.
        batches: The blocks again, joined into batched products; for a single row of inputs.
    """

    rows: int
    width: int
    blocks: tuple[Block, ...]
    gather: Tensor | None
    scatter: tuple[tuple[int, int], ...]
    every: Tensor
    batches: tuple[Batch, ...]


def make_plan(inputs: Tensor, rows: int) -> Plan:
    """Work out how to compute a product with the structure ``inputs``.

    Args:
        inputs: Bool ``(blocks, inputs)``; see :mod:`fpe_lightning.sparse.blocks`.
        rows: Rows of the weight.

    Example:
        >>> inputs = torch.tensor([[True, True, False, False], [False, False, True, True]])
        >>> [block.runs for block in make_plan(inputs, 6).blocks]
        [(Run(source=0, column=0, length=2),), (Run(source=2, column=0, length=2),)]
    """
    fan_in = inputs.sum(1).tolist()
    runs = [_runs(block) for block in inputs.cpu()]
    count = sum(map(len, runs))
    in_place = count <= len(runs) or (count <= MOST_RUNS * len(runs) and sum(fan_in) >= SHORTEST_RUN * count)
    gather: Tensor | None = None
    scatter: tuple[tuple[int, int], ...] = ()
    if not in_place:
        starts, gather, scatter = _gathered(inputs)
        runs = [[Run(start, 0, fan)] if fan else [] for start, fan in zip(starts, fan_in, strict=True)]
    blocks, offset = [], 0
    for (row, height), fan, read in zip(block_rows(rows, len(inputs)), fan_in, runs, strict=True):
        blocks.append(Block(row, height, offset, fan, tuple(read)))
        offset += height * fan
    every = torch.cat([block.nonzero().squeeze(1) for block in inputs])
    return Plan(rows, inputs.shape[1], tuple(blocks), gather, scatter, every, _batches(blocks))


def _batches(blocks: list[Block]) -> tuple[Batch, ...]:
    """Join blocks of one shape that follow each other."""
    found: list[Batch] = []
    source = 0
    for block in blocks:
        last = found[-1] if found else None
        same = last is not None and (last.rows, last.fan_in) == (block.rows, block.fan_in)
        if last is not None and same and last.row + last.count * last.rows == block.row:
            found[-1] = replace(last, count=last.count + 1)
        elif block.fan_in:
            found.append(Batch(1, block.rows, block.fan_in, block.row, block.offset, source))
        source += block.fan_in
    return tuple(found)


def _runs(block: Tensor) -> list[Run]:
    """The stretches of consecutive inputs of one block."""
    edges = torch.diff(block.int(), prepend=block.new_zeros(1).int(), append=block.new_zeros(1).int())
    starts, ends = (edges == 1).nonzero().squeeze(1).tolist(), (edges == -1).nonzero().squeeze(1).tolist()
    found: list[Run] = []
    column = 0
    for start, end in zip(starts, ends, strict=True):
        found.append(Run(start, column, end - start))
        column += end - start
    return found


def _gathered(inputs: Tensor) -> tuple[list[int], Tensor, tuple[tuple[int, int], ...]]:
    """Where each block begins in the gathered copy, what is gathered, and which stretches of it hold nothing twice.

    Blocks that read the same inputs share one place.
    """
    places: dict[bytes, int] = {}
    starts: list[int] = []
    parts: list[Tensor] = []
    scatter: list[tuple[int, int]] = []
    taken = torch.zeros(inputs.shape[1], dtype=torch.bool, device=inputs.device)
    length, begin = 0, 0
    for block in inputs:
        key = block.cpu().numpy().tobytes()
        if key not in places:
            if bool((taken & block).any()):
                scatter.append((begin, length - begin))
                begin = length
                taken = torch.zeros_like(taken)
            taken = taken | block
            places[key] = length
            parts.append(block.nonzero().squeeze(1))
            length += len(parts[-1])
        starts.append(places[key])
    scatter.append((begin, length - begin))
    return starts, torch.cat(parts), tuple(scatter)
