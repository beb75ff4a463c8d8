"""Whole columns of blocks are pruned: exactly as many weights as asked, evenly, the smallest first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fpe_lightning.expansion.assign import kept_outputs
from fpe_lightning.expansion.order import block_order
from fpe_lightning.pruning.columns import Incoming, remove_columns
from fpe_lightning.sites.site import Attribute, Axis, Producer, Site


@settings(deadline=None)
@given(
    blocks=st.integers(1, 4),
    rows=st.integers(1, 5),
    inputs=st.integers(6, 12),
    kernel=st.integers(1, 4),
    data=st.data(),
)
def test_exactly_as_many_weights_go_and_whole_columns_first(
    blocks: int, rows: int, inputs: int, kernel: int, data: st.DataObject
) -> None:
    size = rows * kernel
    count = data.draw(st.integers(0, size * blocks * (inputs - 3)))
    weight = torch.randn(blocks * rows, inputs, kernel, generator=torch.Generator().manual_seed(0))
    kept = remove_columns([Incoming(weight, torch.ones_like(weight, dtype=torch.bool), rows)], count)[0]
    assert int((~kept).sum()) == count
    reads = kept.view(blocks, rows, inputs, kernel)
    whole = (~reads).all(3).all(1).sum(1)
    assert int(whole.sum()) >= count // size
    if count % size == 0:
        assert int(whole.max()) - int(whole.min()) <= 1
        assert bool((reads.any(3).any(1) == reads.all(3).all(1)).all())


def test_the_smallest_columns_go() -> None:
    weight = torch.ones(4, 3, 1)
    weight[:2, 1] = 0.5
    weight[2:, 0] = 0.1
    kept = remove_columns([Incoming(weight, torch.ones(4, 3, 1, dtype=torch.bool), 2)], 4)[0].squeeze(2)
    assert kept.tolist() == [[True, False, True]] * 2 + [[False, True, True]] * 2


def test_blocks_that_read_the_most_lose_one_more_then_first_children() -> None:
    weight, mask = torch.randn(4, 9, 1), torch.ones(4, 9, 1, dtype=torch.bool)
    assert remove_columns([Incoming(weight, mask, 1, alpha=2)], 2)[0].sum((1, 2)).tolist() == [8, 8, 9, 9]
    mask[0, 0] = False
    assert remove_columns([Incoming(weight, mask, 1, alpha=2)], 3)[0].sum((1, 2)).tolist() == [8, 8, 8, 8]


def test_producers_share_the_loss_and_masked_weights_are_not_counted_again() -> None:
    gate, value = torch.randn(4, 8, 1), torch.randn(4, 8, 1)
    mask = torch.ones(4, 8, 1, dtype=torch.bool)
    mask[:, :2] = False
    kept = remove_columns([Incoming(gate, mask, 2), Incoming(value, mask, 2)], 8)
    assert [int(part.sum()) for part in kept] == [20, 20]
    assert not any(bool((part & ~mask).any()) for part in kept)


def test_a_block_is_never_emptied() -> None:
    with pytest.raises(ValueError, match="Cannot remove 6 columns of 2 blocks that read 3 inputs and more"):
        remove_columns([Incoming(torch.ones(4, 3, 1), torch.ones(4, 3, 1, dtype=torch.bool), 2)], 12)


@given(groups=st.integers(1, 5), alpha=st.integers(2, 4), outputs=st.integers(4, 11))
def test_one_copy_of_each_outgoing_weight_stays_and_every_child_has_some(groups: int, alpha: int, outputs: int) -> None:
    child = torch.arange(alpha).repeat(groups)
    stays = kept_outputs(child, outputs, alpha)
    assert bool((stays.view(outputs, groups, alpha).sum(2) == 1).all())
    assert int(stays.sum(0).min()) >= outputs // alpha
    untouched = kept_outputs(torch.tensor([-1, 0, 1]), 4, 2)
    assert bool(untouched[:, 0].all())


def make_site(*names: str, units: torch.Tensor | None = None) -> Site:
    producer = Producer("0.weight", 0, 0, 4, units=torch.arange(4))
    attributes = tuple(Attribute("", name, 4) for name in names)
    return Site("0", 4, 8, (producer,), (), (Axis("2.weight", 1, 0, 8, 2, units),), attributes)


def test_children_of_one_number_are_adjacent() -> None:
    site = block_order(torch.nn.Identity(), make_site("out_features", units=torch.arange(4).repeat_interleave(2)))
    assert [site.producers[0].run, site.consumers[0].run] == [4, 8]


def test_an_order_that_matters_is_kept() -> None:
    for site in (make_site("num_channels"), make_site(units=torch.tensor([0, 0, 2, 2, 1, 1, 3, 3]))):
        assert block_order(torch.nn.Identity(), site) is site
