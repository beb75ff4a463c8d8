"""Which of a model's sites an expansion is asked to split, and by how much."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fpe_lightning.expansion.find import find_sites
from fpe_lightning.expansion.sites import Site

Alpha = int | Mapping[str, int]
Sites = str | Sequence[str | Site] | None


def check_alpha(alpha: Alpha) -> None:
    """Refuse an expansion factor that is no integer of at least 2.

    Raises:
        ValueError: With what was found.

    Example:
        >>> check_alpha(2)
        >>> check_alpha({"encoder.*": 4})
    """
    for factor in alpha.values() if isinstance(alpha, Mapping) else [alpha]:
        if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
            raise ValueError(
                f"`alpha` is the number of children of each neuron, an integer of at least 2; found {factor!r}."
            )
    if isinstance(alpha, Mapping) and not alpha:
        raise ValueError("`alpha` is an empty mapping; name at least one site.")


def select_sites(model: nn.Module, alpha: Alpha, sites: Sites, example_inputs: Any) -> list[tuple[Site, int]]:
    """Choose sites by name and give each its expansion factor.

    Args:
        model: The model.
        alpha: One factor for all, or a mapping from names or globs to factors; with a mapping and ``sites=None``, the
            sites that it names are chosen. The first pattern that matches a site counts.
        sites: Names or globs, :class:`Site` objects, or None.
        example_inputs: See :func:`~fpe_lightning.expansion.expand.expand`.

    Returns:
        Pairs of a site and its factor, in the order in which the model uses them.

    Raises:
        ValueError: If the model has no site, a pattern matches nothing, or a chosen site has no factor.
    """
    check_alpha(alpha)
    if isinstance(sites, (str, Site)):
        sites = [sites]
    if sites is not None and len(sites) == 0:
        raise ValueError("`sites` is empty; name at least one site, or pass None for all.")
    found = [site for site in sites or [] if isinstance(site, Site)]
    if not found or len(found) < len(sites or []):
        found = _find(model, example_inputs)
    patterns = [site for site in sites or [] if isinstance(site, str)]
    if sites is None and isinstance(alpha, Mapping):
        patterns = list(alpha)
    names = [site.name for site in found]
    for pattern in [*patterns, *(alpha if isinstance(alpha, Mapping) else ())]:
        if not any(fnmatchcase(name, pattern) for name in names):
            nearest = difflib.get_close_matches(pattern, names, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"No site matches {pattern!r}.{hint} Sites of this model: {', '.join(names)}.")
    named = {site.name for site in sites or [] if isinstance(site, Site)}
    everything = not patterns and not named
    return [
        (site, _factor(site, alpha))
        for site in found
        if everything or site.name in named or any(fnmatchcase(site.name, pattern) for pattern in patterns)
    ]


def _find(model: nn.Module, example_inputs: Any) -> list[Site]:
    if example_inputs is None:
        example_inputs = getattr(model, "example_input_array", None)
    if example_inputs is None:
        raise ValueError(
            "Finding the sites of a model takes one forward pass: pass `example_inputs` (a tensor, a tuple of arguments "
            "or a dict of keyword arguments), or pass sites found earlier."
        )
    found, refusals = find_sites(model, example_inputs, explain=True)
    if not found:
        reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refusals[:3])
        raise ValueError(
            f"{type(model).__name__} has no hidden width that can be widened" + (f" ({reasons})." if reasons else ".")
        )
    return list(found)


def _factor(site: Site, alpha: Alpha) -> int:
    if not isinstance(alpha, Mapping):
        return alpha
    for pattern, factor in alpha.items():
        if fnmatchcase(site.name, pattern):
            return factor
    raise ValueError(f"`alpha` names no factor for the chosen site {site.name!r}; add it to the mapping.")
