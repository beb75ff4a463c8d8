"""The record survives as bits, and tells each row's ancestor over several splits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
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
grown = st.tuples(st.integers(0, 2**20), st.integers(1, 2**20)).map(lambda pair: [pair[0], sum(pair)])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[Split]]:
    """A shape, and splits that can have happened to it."""
    shape, splits = draw(st.lists(st.integers(1, 2**10), min_size=1, max_size=4)), []
    now = list(shape)
    for _ in range(draw(st.integers(0, 3))):
        dim, run, alpha = draw(st.integers(0, len(now) - 1)), draw(st.integers(1, 3)), draw(st.integers(2, 5))
        if now[dim] < run:
            continue
        length = run * draw(st.integers(1, now[dim] // run))
        splits.append(Split(dim, draw(st.integers(0, now[dim] - length)), length, run, alpha))
        now[dim] += (alpha - 1) * length
    return shape, splits


@given(st.dictionaries(names, histories(), max_size=3), st.dictionaries(names, grown, max_size=3))
def test_round_trip_of_any_record(tensors: dict, attributes: dict) -> None:
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    record = Record(shapes, {name: splits for name, (_, splits) in tensors.items()}, attributes)
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


SPLIT = {"dim": 0, "start": 0, "length": 8, "run": 1, "alpha": 2}


def told(shape: Any = (8, 64), attributes: Any = None, **change: Any) -> Any:
    split = {key: value for key, value in {**SPLIT, **change}.items() if value != "missing"}
    return {"shapes": {"weight": shape}, "splits": {"weight": [split]}, "attributes": attributes or {}}


LIES = [
    *([1, 2], 7, None, {}, {"shapes": {}, "splits": {}}, {"shapes": [], "splits": {}, "attributes": {}}),
    *(told(shape) for shape in (8, "8", None, [-8, 64], [8.0, 64], ["8", 64], [True, 64], [10**13, 64], [7, 64])),
    *(told([8, 64], **{key: value}) for key in SPLIT for value in ("2", 2.0, None, True, [1], -1, 10**13, "missing")),
    *(told([8, 64], run=run) for run in (0, 3, 16)),
    *(told([8, 64], **change) for change in ({"dim": 2}, {"start": 1}, {"length": 0}, {"alpha": 0}, {"alpha": 1})),
    told([8, 64], extra=1),
    *(told([8, 64], {"out_features": value}) for value in (16, [8], [8, 16, 32], [8, "16"], [16, 8], [8, [16]])),
    *(told([8, 64], {"out_features": value}) for value in ([True, True], [[8], [16, 16]], [8, 1e9], None, [-1, 8])),
    {"shapes": {"weight": [8]}, "splits": {}, "attributes": {}},
    {"shapes": {"weight": [8]}, "splits": {"weight": {}}, "attributes": {}},
    {"shapes": {"weight": [8]}, "splits": {"weight": [[0, 0, 8, 1, 2]]}, "attributes": {}},
]


@pytest.mark.parametrize("lie", LIES, ids=repr)
def test_what_cannot_have_happened_is_refused(lie: Any) -> None:
    text = json.dumps(lie).encode()
    bits = torch.from_numpy(np.unpackbits(np.frombuffer(text, np.uint8)).astype(bool))
    with pytest.raises(ValueError, match=rf"^The checkpoint is broken: `{RECORD}` of \d+ bits is no expansion record"):
        Record.decode(bits)


@pytest.mark.parametrize("text", [b"[" * 200_000, b"\xff\xfe", b"NaN", b"1" * 10_000, b"{"])
def test_other_text_is_refused(text: bytes) -> None:
    bits = torch.from_numpy(np.unpackbits(np.frombuffer(text, np.uint8)).astype(bool))
    with pytest.raises(ValueError, match="is no expansion record"):
        Record.decode(bits)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda bits: bits.float(),
            lambda bits: bits.view(8, -1),
            lambda bits: bits[:-1],
            lambda bits: bits.to("meta"),
        ),
        *(lambda bits: bits[:1].expand(8 * 10**12), lambda bits: bits.to_sparse(), lambda bits: None),
    ],
)
def test_other_tensors_are_refused(change: Any) -> None:
    with pytest.raises(ValueError, match="is no expansion record"):
        Record.decode(change(Record({"weight": [8]}, {"weight": [Split(0, 0, 8, 1, 2)]}).encode()))
