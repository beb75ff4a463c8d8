"""A block structure says the same as its mask, and packing loses nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fpe_lightning.sparse.grouped.blocks import block_rows, count_blocks, expand_blocks, find_blocks, pack, unpack


@st.composite
def structures(draw: st.DrawFn) -> tuple[Tensor, int]:
    """A random structure, and a number of rows that has room for its blocks."""
    blocks, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    rows = draw(st.integers(blocks, 4 * blocks + 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(blocks, inputs, generator=generator) < draw(st.sampled_from([0.2, 0.5, 0.9])), rows


@given(rows=st.integers(1, 50), blocks=st.integers(1, 50))
def test_blocks_cover_the_rows_evenly(rows: int, blocks: int) -> None:
    cut = block_rows(rows, blocks)
    assert sum(count for _, count in cut) == rows
    assert [start for start, _ in cut] == [sum(count for _, count in cut[:i]) for i in range(blocks)]
    assert max(count for _, count in cut) - min(count for _, count in cut) <= 1


@settings(deadline=None)
@given(given=structures())
def test_packing_is_exact_and_holds_the_nonzeros_alone(given: tuple[Tensor, int]) -> None:
    inputs, rows = given
    mask = expand_blocks(inputs, rows)
    dense = torch.randn(rows, inputs.shape[1]).masked_fill(~mask, 0)
    packed = pack(dense, inputs)
    assert packed.shape == (int(mask.sum()), 1) == (count_blocks(inputs, rows), 1)
    assert torch.equal(unpack(packed, inputs, dense.shape), dense)
    kernels = dense[:, :, None, None] * torch.randn(1, 1, 2, 3)
    assert torch.equal(unpack(pack(kernels, inputs), inputs, kernels.shape), kernels)


@settings(deadline=None)
@given(given=structures())
def test_the_structure_of_a_mask_says_the_same_as_the_mask(given: tuple[Tensor, int]) -> None:
    inputs, rows = given
    mask = expand_blocks(inputs, rows)
    found = find_blocks(mask)
    assert torch.equal(expand_blocks(found, rows), mask)
    if rows % len(inputs) == 0:
        assert len(found) <= len(inputs)


def test_a_half_masked_kernel_is_no_block_structure() -> None:
    mask = torch.ones(2, 2, 3, dtype=torch.bool)
    mask[0, 0, 0] = False
    with pytest.raises(ValueError, match="keeps some entries of a kernel and drops others"):
        find_blocks(mask)
