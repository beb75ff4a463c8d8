"""Which sites are meant, by how much, and what is said where that is not clear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fpe_lightning.sites.select import check_alpha, select_sites, sites_of
from fpe_lightning.sites.site import Site

FOUND = [Site(name, 8, 4, (), (), ()) for name in ("encoder.0", "encoder.2", "head.0")]


def chosen(**arguments: Any) -> list[tuple[str, int]]:
    return [(site.name, factor) for site, factor in select_sites(FOUND, **arguments)]


def test_names_globs_and_factors() -> None:
    assert chosen(alpha=2) == [("encoder.0", 2), ("encoder.2", 2), ("head.0", 2)]
    assert chosen(alpha=2, sites="encoder.*") == [("encoder.0", 2), ("encoder.2", 2)]
    assert chosen(alpha=2, sites=["head.0", "encoder.2"]) == [("encoder.2", 2), ("head.0", 2)]
    assert chosen(alpha={"encoder.2": 4, "*": 2}) == [("encoder.0", 2), ("encoder.2", 4), ("head.0", 2)]
    assert chosen(alpha={"head.*": 3}) == [("head.0", 3)]
    assert chosen(alpha={"encoder.0": 3, "encoder.*": 2}, sites="encoder.*") == [("encoder.0", 3), ("encoder.2", 2)]


@pytest.mark.parametrize("alpha", [1, 0, -2, 2.0, True, "2", None, 1.5])
def test_alpha_is_an_integer_of_at_least_two(alpha: Any) -> None:
    for given in (alpha, {"*": alpha}):
        with pytest.raises(ValueError, match=f"integer of at least 2; found {alpha!r}"):
            check_alpha(given)


def test_alpha_of_numpy_is_taken() -> None:
    check_alpha(np.int64(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": {}}, "`alpha` is an empty mapping"),
        ({"alpha": 2, "sites": []}, "`sites` is empty"),
        (
            {"alpha": 2, "sites": "head.1"},
            r"No site matches 'head.1'. Did you mean 'head.0'\? Sites .*: encoder.0, enc",
        ),
        ({"alpha": 2, "sites": ["head.0", "tail.*"]}, r"No site matches 'tail.\*'"),
        ({"alpha": {"encoder.1": 2}}, r"No site matches 'encoder.1'. Did you mean 'encoder.[02]'"),
        ({"alpha": {"head.*": 2}, "sites": "*"}, "no factor for the chosen site 'encoder.0'"),
    ],
)
def test_what_matches_nothing_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_sites(FOUND, **arguments)


def test_a_model_without_sites_says_why() -> None:
    with pytest.raises(ValueError, match=r"Linear has no hidden width that can be widened \(.*reaches an output"):
        sites_of(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="no hidden width"):
        select_sites([], 2)


def test_example_inputs_may_stand_on_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="pass `example_inputs`"):
        sites_of(model, None)
    model.example_input_array = torch.zeros(1, 4)
    assert [site.name for site in sites_of(model, None)] == ["0"]
