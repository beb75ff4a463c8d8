"""Which of a model's sites an expansion is asked to split, and by how much."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

from torch import nn

from fpe_lightning.sites.find import find_sites
from fpe_lightning.sites.site import Site

Alpha = int | Mapping[str, int]
Sites = str | Sequence[str] | Sequence[Site] | None


def check_alpha(alpha: Alpha) -> None:
    """Refuse an expansion factor that is no integer of at least 2.

    Raises:
        ValueError: With what was found.

    Example:
        >>> check_alpha(2)
        >>> check_alpha({"encoder.*": 4})
    """
    for factor in alpha.values() if isinstance(alpha, Mapping) else [alpha]:
        if not isinstance(factor, Integral) or isinstance(factor, bool) or factor < 2:
            raise ValueError(
                f"`alpha` is the number of children of each neuron, an integer of at least 2; found {factor!r}."
            )
    if isinstance(alpha, Mapping) and not alpha:
        raise ValueError("`alpha` is an empty mapping; name at least one site.")


def select_sites(
    found: Sequence[Site], alpha: Alpha, sites: str | Sequence[str] | None = None
) -> list[tuple[Site, int]]:
    """Choose sites by name and give each its expansion factor.

    Args:
        found: The sites of a model.
        alpha: One factor for all, or a mapping from names or globs to factors; with a mapping and ``sites=None``, the
            sites that it names are chosen. The first pattern that matches a site counts.
        sites: Names or globs, or None for all.

    Returns:
        Pairs of a site and its factor, in the order in which the model uses them.

    Raises:
        ValueError: If there are no sites, a pattern matches nothing, or a chosen site has no factor.

    Example:
        >>> found = [Site("encoder", 8, 4, (), (), ()), Site("head.0", 8, 4, (), (), ())]
        >>> [(site.name, factor) for site, factor in select_sites(found, 2, "head.*")]
        [('head.0', 2)]
    """
    check_alpha(alpha)
    if not found:
        raise ValueError("The model has no hidden width that can be widened.")
    patterns = [sites] if isinstance(sites, str) else list(sites or [])
    if sites is not None and not patterns:
        raise ValueError("`sites` is empty; name at least one site, or pass None for all.")
    factors = dict(alpha) if isinstance(alpha, Mapping) else {"*": alpha}
    names = [site.name for site in found]
    for pattern in [*patterns, *factors]:
        if not any(fnmatchcase(name, pattern) for name in names):
            nearest = difflib.get_close_matches(pattern, names, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"No site matches {pattern!r}.{hint} Sites of this model: {', '.join(names)}.")
    patterns = patterns or list(factors)
    chosen = [site for site in found if any(fnmatchcase(site.name, pattern) for pattern in patterns)]
    return [(site, _factor(site, factors)) for site in chosen]


def _factor(site: Site, factors: Mapping[str, int]) -> int:
    for pattern, factor in factors.items():
        if fnmatchcase(site.name, pattern):
            return int(factor)
    raise ValueError(f"`alpha` names no factor for the chosen site {site.name!r}; add it to the mapping.")


def sites_of(model: nn.Module, example_inputs: Any) -> list[Site]:
    """The sites of a model, at least one.

    Args:
        model: Any module.
        example_inputs: What its forward takes; None takes the model's ``example_input_array``.

    Raises:
        ValueError: If no example inputs are known, or nothing can be widened.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [site.name for site in sites_of(model, torch.zeros(1, 4))]
        ['0']
    """
    if example_inputs is None:
        example_inputs = getattr(model, "example_input_array", None)
    if example_inputs is None:
        raise ValueError(
            "Finding the sites of a model takes one forward pass: pass `example_inputs` (a tensor, a tuple of "
            "arguments or a dict of keyword arguments), or pass sites found earlier."
        )
    found, refusals = find_sites(model, example_inputs, explain=True)
    if not found:
        reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refusals[:3])
        raise ValueError(
            f"{type(model).__name__} has no hidden width that can be widened" + (f" ({reasons})." if reasons else ".")
        )
    return found
