"""Allocation of zeros and masks: counts are exact for all sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fpe_lightning.networks.sparse_init import (
    ALLOCATIONS,
    allocate,
    constant_fan_in_mask,
    random_mask,
    scaled_uniform_,
)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=5), st.sampled_from(ALLOCATIONS), st.data())
def test_allocated_counts_add_up_and_fit(sizes: list[int], allocation: str, data: st.DataObject) -> None:
    sparse = sizes if allocation == "even" else sizes[:-1]
    excess = data.draw(st.integers(0, sum(sparse) - len(sparse)))
    counts = allocate(sizes, excess, allocation)
    assert sum(counts) == sum(sizes) - excess
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert allocation == "even" or counts[-1] == sizes[-1]


def test_zeros_that_empty_the_sparse_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"100 zeros among 100 weights .* leave 0 non-zeros; use a smaller alpha"):
        allocate([100, 50], 100, "hidden")


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_masks_have_exactly_as_many_entries_as_asked(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, rows * columns))
    for draw in (random_mask, constant_fan_in_mask):
        mask = draw(rows, columns, count, torch.Generator().manual_seed(seed))
        assert mask.shape == (rows, columns)
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == count
        assert torch.equal(mask, draw(rows, columns, count, torch.Generator().manual_seed(seed)))
    fan_in = mask.sum(1)
    assert int(fan_in.max() - fan_in.min()) <= 1


def test_a_layer_without_bias_is_initialised_too() -> None:
    layer = nn.Linear(100, 50, bias=False)
    scaled_uniform_(layer, 0.25)
    assert 0.19 < float(layer.weight.detach().abs().max()) <= 0.2
