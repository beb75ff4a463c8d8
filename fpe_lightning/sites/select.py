"""Which of a model's sites an expansion is asked to split, by name or glob."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from fpe_lightning.arguments import check_strings
from fpe_lightning.registry import did_you_mean
from fpe_lightning.sites.find import search_sites
from fpe_lightning.sites.found import Found
from fpe_lightning.sites.site import Site

Names = str | Sequence[str]
T = TypeVar("T")


def select_sites(found: Sequence[Site], sites: Names | None = None, exclude: Names | None = None) -> list[Site]:
    """Choose sites by name.

    Args:
        found: The sites of a model.
        sites: Names or globs, or None for all.
        exclude: Names or globs of sites that are left out of these, or None for none.

    Returns:
        The chosen sites, in the order in which the model uses them.

    Raises:
        ValueError: If there are no sites, a pattern matches nothing, or nothing is left.

    Example:
        >>> found = [Site("encoder", 8, 4, (), (), ()), Site("head.0", 8, 4, (), (), ())]
        >>> [site.name for site in select_sites(found, "head.*")]
        ['head.0']
        >>> [site.name for site in select_sites(found, exclude="head.*")]
        ['encoder']
    """
    if not found:
        raise ValueError("The model has no hidden width that can be widened.")
    wanted, unwanted = _patterns("sites", sites, found), _patterns("exclude", exclude, found)
    chosen = [
        site
        for site in found
        if (sites is None or _matches(site, wanted)) and not (unwanted and _matches(site, unwanted))
    ]
    if not chosen:
        raise ValueError(
            f"`exclude` leaves no site to split: {', '.join(site.name for site in found)} are all excluded."
        )
    return chosen


def by_pattern(found: Sequence[Site], mapping: Mapping[str, T], strict: bool = False) -> list[tuple[Site, T]]:
    """Give each site the value of the first pattern that matches its name; sites that none matches are left out.

    Args:
        found: The sites of a model.
        mapping: Values by names or globs.
        strict: Whether a site that none matches is refused: somebody named it.

    Raises:
        ValueError: If the mapping is empty, one of its patterns matches no site, or a site that was named has no value.

    Example:
        >>> found = [Site("encoder", 8, 4, (), (), ()), Site("head.0", 8, 4, (), (), ())]
        >>> [(site.name, value) for site, value in by_pattern(found, {"head.*": 2, "*": 4})]
        [('encoder', 4), ('head.0', 2)]
    """
    if not mapping:
        raise ValueError("The mapping from sites to expansions is empty; name at least one site.")
    # A pattern that matches nothing is a slip of the pen, also where others match.
    _patterns("the mapping", list(mapping), found)
    pairs = []
    for site in found:
        value = value_of(site, mapping)
        if value is not None:
            pairs.append((site, value))
        elif strict:
            raise ValueError(f"`expansion` holds nothing for the chosen site {site.name!r}; add it to the mapping.")
    return pairs


def value_of(site: Site, mapping: Mapping[str, T]) -> T | None:
    """The value of the first pattern that matches the name of a site, or None."""
    return next((value for pattern, value in mapping.items() if fnmatchcase(site.name, pattern)), None)


def _patterns(argument: str, given: Names | None, found: Sequence[Site]) -> list[str]:
    """The patterns as a list, each of which has to match a site."""
    if given is None:
        return []
    # A number or a site among the names would match nothing, and be blamed for that.
    check_strings(argument, given)
    patterns = [given] if isinstance(given, str) else list(given)
    if not patterns:
        raise ValueError(f"`{argument}` is empty; name at least one site, or leave it out.")
    names = [site.name for site in found]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            # The nearest name, for typing errors; all names, for everything else.
            hint = did_you_mean(pattern, names)
            raise ValueError(f"No site matches {pattern!r}.{hint} Sites of this model: {', '.join(names)}.")
    return patterns


def _matches(site: Site, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(site.name, pattern) for pattern in patterns)


def sites_of(model: nn.Module, example_inputs: Any) -> list[Site]:
    """The sites of a model, at least one.

    Args:
        model: Any module whose layers are all dense or masked, as inside of
            :func:`~fpe_lightning.sparse.convert.stored_masked`.
        example_inputs: The inputs of its forward; None takes the model's ``example_input_array``.

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
    found = search_sites(model, example_inputs)
    check_found(model, found)
    return list(found.sites)


def check_found(model: nn.Module, found: Found) -> None:
    """Refuse a model without sites.

    Raises:
        ValueError: With the reasons against its widths.

    Example:
        >>> import torch
        >>> check_found(nn.Linear(4, 2), search_sites(nn.Linear(4, 2), torch.zeros(1, 4)))
        Traceback (most recent call last):
        ...
        ValueError: Linear has no hidden width that can be widened (weight: it reaches an output of the model).
    """
    if not found.sites:
        reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in found.refusals[:3])
        rest = f"; and {len(found.refusals) - 3} more" if len(found.refusals) > 3 else ""
        raise ValueError(
            f"{type(model).__name__} has no hidden width that can be widened"
            + (f" ({reasons}{rest})." if reasons else ".")
        )
