"""Sites survive a checkpoint, and nothing in a file is believed before it is checked."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.sites.find import search_sites
from fpe_lightning.sites.plain import from_plain, to_plain
from tests.support.nets import cnn, mlp


def plain(model: nn.Module, example: torch.Tensor) -> Any:
    buffer = io.BytesIO()
    torch.save(to_plain(search_sites(model, example), model), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("model", "example"), [(mlp(16, 8, 6, 3, norm=True), torch.randn(4, 16)), (cnn(), torch.randn(2, 16, 8, 8))]
)
def test_round_trip(model: nn.Module, example: torch.Tensor) -> None:
    found = search_sites(model, example)
    again = from_plain(plain(model, example), model)
    assert again is not None
    assert (again.sites, again.refusals) == (found.sites, found.refusals)
    for old, new in zip(found.sites, again.sites, strict=True):
        assert new.input_shapes == old.input_shapes
        assert all(torch.equal(a.units, b.units) for a, b in zip(old.axes(), new.axes(), strict=True))


def test_sites_of_a_model_of_other_widths_are_none() -> None:
    model, x = mlp(16, 8, 3), torch.randn(4, 16)
    saved = plain(model, x)
    fpe.expand(model, example_inputs=x)
    assert from_plain(saved, model) is None
    assert from_plain(plain(model, x), model) is not None


@pytest.mark.parametrize(
    "path",
    [
        ("sites", 0, "producers", 0, "parameter", "9.weight"),
        ("sites", 0, "producers", 0, "dim", 7),
        ("sites", 0, "producers", 0, "start", -1),
        ("sites", 0, "producers", 0, "length", 9),
        ("sites", 0, "producers", 0, "run", 3),
        ("sites", 0, "producers", 0, "run", 0),
        ("sites", 0, "producers", 0, "units", [0, 1]),
        ("sites", 0, "producers", 0, "units", [8] * 8),
        ("sites", 0, "producers", []),
        ("sites", 0, "attributes", 0, "name", "__class__"),
        ("sites", 0, "attributes", 0, "growth", "8"),
        ("sites", 0, "width", "8"),
        ("sites", 0, "linear", 1),
        ("sites", 3),
        ("shapes", {}),
        ("refusals", None),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_what_does_not_fit_is_none(path: tuple[Any, ...]) -> None:
    model = mlp(16, 8, 3)
    saved = copy.deepcopy(plain(model, torch.randn(4, 16)))
    part = saved
    for key in path[:-2]:
        part = part[key]
    part[path[-2]] = path[-1]
    assert from_plain(saved, model) is None


@pytest.mark.parametrize("saved", [None, 3, [], {}, {"sites": [{}]}])
def test_other_things_are_none(saved: Any) -> None:
    assert from_plain(saved, mlp(16, 8, 3)) is None
