"""Networks and checks that the tests of sites share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fpe_lightning.expansion import Site, find_sites
from fpe_lightning.expansion.proof import prove_site, prove_sites


class Net(nn.Module):
    """A module made of parts and a forward function."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def proven(model: nn.Module, example: object, **options: bool) -> list[Site]:
    """The sites of a model, each of which has passed the duplication proof alone and all together."""
    sites = find_sites(model, example, **options)
    for site in sites:
        assert prove_site(model, site, example).holds, site.name
    assert not sites or prove_sites(model, sites, example).holds
    return sites


def reasons(model: nn.Module, example: object, **options: bool) -> dict[str, str]:
    """The reason of each refusal."""
    return {refusal.name: refusal.reason for refusal in find_sites(model, example, explain=True, **options)[1]}
