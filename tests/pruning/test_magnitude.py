"""Counts are exact, and ties go by the documented rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fpe_lightning.pruning.magnitude import remove_smallest
from fpe_lightning.sparse import set_mask
from fpe_lightning.sparse.model_masks import count_nonzeros


@given(st.data())
def test_exactly_so_many_of_the_smallest_go(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3))
    # Few distinct values, so that there are ties.
    weights = [torch.randint(-3, 4, shape, generator=generator).to(dtype) for shape in shapes]
    masks = [torch.rand(shape, generator=generator) < 0.8 for shape in shapes]
    alive = int(sum(mask.sum() for mask in masks))
    if alive < 2:
        return
    count = data.draw(st.integers(0, alive - 1))
    kept = remove_smallest(weights, masks, count)
    # The rule in its plainest form: a stable sort of (magnitude, position).
    order = sorted(
        (float(weight[index].abs()), which, index)
        for which, (weight, mask) in enumerate(zip(weights, masks, strict=True))
        for index in map(tuple, mask.nonzero().tolist())
    )
    expected = [mask.clone() for mask in masks]
    for _, which, index in order[:count]:
        expected[which][index] = False
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(kept, expected, strict=True))


def test_masks_that_come_in_are_left_alone() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    for count in (0, 1):
        (kept,) = remove_smallest([torch.randn(2, 2)], [mask], count)
        kept.zero_()
        assert mask.all()


@pytest.mark.parametrize("count", [4, 5])
def test_removing_everything_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"Cannot remove {count} of 4 weights: too little is left"):
        remove_smallest([torch.ones(2, 2)], [torch.ones(2, 2, dtype=torch.bool)], count)


def test_count_of_dense_masked_shared_and_zero() -> None:
    layer = nn.Linear(4, 3)
    assert count_nonzeros(layer) == 15
    with torch.no_grad():
        layer.weight.zero_()
    assert count_nonzeros(layer) == 15
    set_mask(layer, "weight", torch.eye(3, 4, dtype=torch.bool))
    assert count_nonzeros(layer) == 6
    tied = nn.Sequential(layer, nn.Linear(4, 3))
    tied[1].weight = layer.weight
    assert count_nonzeros(tied) == 9


def test_count_of_buffers_is_none() -> None:
    assert count_nonzeros(nn.BatchNorm1d(5)) == 10


def test_a_tie_goes_to_the_producer_first() -> None:
    def ones(mask: Tensor) -> Tensor:
        return mask.float()

    masks = [torch.ones(2, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)]
    kept = remove_smallest([ones(mask) for mask in masks], masks, 5)
    assert kept[0].sum() == 0
    assert torch.equal(kept[1], torch.tensor([[False, True, True]]))
