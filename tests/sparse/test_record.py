"""The record survives as bits, and tells each row's ancestor over several splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.expansion import expand
from fpe_lightning.sparse import Record, Split, parents_of, record_of
from fpe_lightning.sparse.record import RECORD

names = st.text(min_size=1, max_size=8)
splits = st.builds(Split, *[st.integers(0, 2**40)] * 5)


@given(
    st.dictionaries(names, st.lists(st.integers(0, 2**40), max_size=4), max_size=3),
    st.dictionaries(names, st.lists(splits, max_size=3), max_size=3),
    st.dictionaries(names, st.tuples(st.integers(), st.integers()).map(list), max_size=3),
)
def test_round_trip_of_any_record(shapes: dict, history: dict, attributes: dict) -> None:
    record = Record(shapes, history, attributes)
    bits = record.encode()
    assert bits.dtype == torch.bool
    assert Record.decode(bits) == record
    assert Record.decode(bits.clone().float().bool()) == record


@given(st.data())
def test_every_entry_of_a_split_names_its_parent_and_its_copy(data: st.DataObject) -> None:
    alpha, run = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    start, units, after = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4)), data.draw(st.integers(0, 3))
    split, size = Split(0, start, units * run, run, alpha), start + units * run + after
    index, child = split.index(size), split.child(size)
    assert len(index) == len(child) == size + (alpha - 1) * units * run
    assert torch.equal(index.bincount(minlength=size)[start : start + units * run], torch.full((units * run,), alpha))
    assert ((child == -1) == ((index < start) | (index >= start + units * run))).all()
    for copy in range(alpha):
        assert torch.equal(index[child == copy], torch.arange(start, start + units * run))
    # Children of a unit are adjacent, each a whole run.
    first = index[start : start + alpha * run]
    assert torch.equal(first, torch.arange(start, start + run).repeat(alpha))


def test_parents_over_three_splits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2))
    assert torch.equal(parents_of(model[0]), torch.arange(3))
    for alpha, total in ((2, 2), (3, 6), (2, 12)):
        expand(model, fpe.Expansion(alpha=alpha, prune="incoming"), example_inputs=torch.randn(1, 64))
        assert torch.equal(parents_of(model[0]), torch.arange(3).repeat_interleave(total))
        assert torch.equal(parents_of(model[0], "bias"), torch.arange(3).repeat_interleave(total))
        assert torch.equal(parents_of(model[2], "weight", dim=1), torch.arange(3).repeat_interleave(total))
        assert torch.equal(parents_of(model[2], "weight", dim=0), torch.arange(2))
    record = record_of(model[0])
    assert record is not None
    assert record.shapes == {"weight": [3, 64], "bias": [3]}
    assert [split.alpha for split in record.splits["weight"]] == [2, 3, 2]
    assert record.attributes == {"out_features": [3, 36]}


@pytest.mark.parametrize("bits", [torch.zeros(0, dtype=torch.bool), torch.ones(64, dtype=torch.bool)])
def test_what_is_no_record_is_named(bits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"`{RECORD}` of {len(bits)} bits is no expansion record"):
        Record.decode(bits)
