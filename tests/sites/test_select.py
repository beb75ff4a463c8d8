"""Which sites are meant, and the messages where that is not clear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fpe_lightning.sites.select import by_pattern, select_sites, sites_of
from fpe_lightning.sites.site import Site

FOUND = [Site(name, 8, 4, (), (), ()) for name in ("encoder.0", "encoder.2", "head.0")]


def chosen(**arguments: Any) -> list[str]:
    return [site.name for site in select_sites(FOUND, **arguments)]


def valued(mapping: dict[str, int]) -> list[tuple[str, int]]:
    return [(site.name, value) for site, value in by_pattern(FOUND, mapping)]


def test_names_and_globs() -> None:
    assert chosen() == ["encoder.0", "encoder.2", "head.0"]
    assert chosen(sites="encoder.*") == ["encoder.0", "encoder.2"]
    assert chosen(sites=["head.0", "encoder.2"]) == ["encoder.2", "head.0"]
    assert chosen(exclude="encoder.*") == ["head.0"]
    assert chosen(sites="encoder.*", exclude=["*.0"]) == ["encoder.2"]


def test_the_first_pattern_that_matches_a_site_counts() -> None:
    assert valued({"encoder.2": 4, "*": 2}) == [("encoder.0", 2), ("encoder.2", 4), ("head.0", 2)]
    assert valued({"*": 2, "encoder.2": 4}) == [("encoder.0", 2), ("encoder.2", 2), ("head.0", 2)]
    assert valued({"head.*": 3}) == [("head.0", 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": []}, "`sites` is empty"),
        ({"exclude": []}, "`exclude` is empty"),
        ({"sites": 3}, "`sites` takes names or globs of sites, a string or a list of them; found 3"),
        ({"sites": "head.1"}, r"No site matches 'head.1'. Did you mean 'head.0'\? Sites .*: encoder.0, enc"),
        ({"sites": ["head.0", "tail.*"]}, r"No site matches 'tail.\*'"),
        ({"exclude": "encoder.1"}, r"No site matches 'encoder.1'. Did you mean 'encoder.[02]'"),
        ({"exclude": "*"}, "`exclude` leaves no site to split: encoder.0, encoder.2, head.0 are all excluded"),
    ],
)
def test_what_matches_nothing_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_sites(FOUND, **arguments)


def test_patterns_of_a_mapping_match_too() -> None:
    with pytest.raises(ValueError, match=r"No site matches 'encoder.1'. Did you mean 'encoder.[02]'"):
        valued({"encoder.1": 2})
    with pytest.raises(ValueError, match="The mapping from sites to expansions is empty"):
        valued({})


def test_a_model_without_sites_says_why() -> None:
    with pytest.raises(ValueError, match=r"Linear has no hidden width that can be widened \(.*reaches an output"):
        sites_of(nn.Linear(4, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="no hidden width"):
        select_sites([])


def test_example_inputs_may_stand_on_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="pass `example_inputs`"):
        sites_of(model, None)
    model.example_input_array = torch.zeros(1, 4)
    assert [site.name for site in sites_of(model, None)] == ["0"]
