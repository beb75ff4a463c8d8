"""Which of the sites that can be widened are worth it, or able to, where nobody names them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.select import Names, by_pattern, select_sites
from fpe_lightning.sites.site import Producer, Site
from fpe_lightning.sparse.convert import stored_masked
from fpe_lightning.sparse.masked import mask_of

FROZEN = "its weights are frozen (requires_grad=False)"
LINEAR = "purely linear, as no operator between its weights is non-linear"
ONCE = "alpha=1 leaves it as it is"
FEW = "incoming weights at most: some child would inherit nothing"


class HasAlpha(Protocol):
    """How to expand a site: into how many children, and more."""

    @property
    def alpha(self) -> int:
        """Children of each neuron; 1 leaves a site as it is."""


Way = TypeVar("Way", bound=HasAlpha)


def choose_sites(
    model: nn.Module,
    found: Sequence[Site],
    mapping: Mapping[str, Way],
    sites: Names | None = None,
    exclude: Names | None = None,
) -> tuple[list[tuple[Site, Way]], list[Refusal]]:
    """Choose the sites to split by name, and without names those that a split makes sense for.

    Args:
        model: The model.
        found: Its sites.
        mapping: How to expand sites, by names or globs; the first that matches counts.
        sites: Names or globs of the sites to split, or None for all. A site whose own name is here or in the mapping
            is never left out.
        exclude: Names or globs of sites that are left as they are.

    Returns:
        Sites, each with its value of the mapping, and reasons against the others.

    Raises:
        ValueError: If a pattern matches nothing, a named site is mapped to nothing, or no site is left.
    """
    chosen = select_sites(found, sites, exclude)
    pairs = by_pattern(chosen, mapping, strict=sites is not None)
    # Names that somebody wrote are wishes; globs are not.
    named = [*([sites] if isinstance(sites, str) else sites or []), *mapping]
    kept, refusals = sensible_sites(model, [(site, way.alpha) for site, way in pairs], named)
    for refusal in refusals:
        # Frozen and linear widths are no surprise; too large an alpha is.
        if FEW in refusal.reason:
            warnings.warn(f"{refusal.name} is not split: {refusal.reason}.", stacklevel=3)
    names = {site.name for site in kept}
    return [(site, way) for site, way in pairs if site.name in names], refusals


def sensible_sites(
    model: nn.Module, sites: Iterable[tuple[Site, int]], named: Iterable[str] = ()
) -> tuple[list[Site], list[Refusal]]:
    """Leave out sites that gain nothing from a split, or that cannot be split.

    Those are sites whose producers or consumers are frozen, sites with no non-linearity between these (the rank of a
    LoRA adapter), and sites whose neurons have fewer inputs than children.

    Args:
        model: The model.
        sites: Pairs of a site and its number of children.
        named: The names of sites that are wanted in any case; patterns name none.

    Returns:
        The sites that are left, and reasons against the others.

    Raises:
        ValueError: If no site is left.

    Example:
        >>> frozen = nn.Linear(4, 8).requires_grad_(False)
        >>> site = Site("0", 8, 4, (Producer("weight", 0, 0, 8),), (), ())
        >>> sensible_sites(frozen, [(site, 2)])
        Traceback (most recent call last):
        ...
        ValueError: No site is left to split: 0: its weights are frozen (requires_grad=False). Name sites in `sites` ...
    """
    wanted = set(named)
    kept: list[Site] = []
    refusals: list[Refusal] = []
    with stored_masked(model):
        for site, alpha in sites:
            reason = _reason_against(model, site, alpha, site.name in wanted)
            if reason is None:
                kept.append(site)
            else:
                refusals.append(Refusal(site.name, reason))
    if not kept:
        reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refusals[:3])
        raise ValueError(
            f"No site is left to split: {reasons}. Name sites in `sites` to split them all the same, where they can be."
        )
    return kept, refusals


def _reason_against(model: nn.Module, site: Site, alpha: int, named: bool) -> str | None:
    if alpha == 1:
        return ONCE
    if named:
        return None
    weights = [_tensor(model, axis.parameter) for axis in (*site.producers, *site.consumers)]
    if not all(weight.requires_grad for weight in weights):
        return FROZEN
    if site.linear:
        return LINEAR
    # Every producer has to have an input for each child.
    inputs = min((_inputs_of(model, producer) for producer in site.producers), default=alpha)
    if inputs < alpha:
        return f"alpha={alpha} was asked for {site.name}, whose neurons have {inputs} {FEW}"
    return None


def _tensor(model: nn.Module, name: str) -> Any:
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def _inputs_of(model: nn.Module, producer: Producer) -> int:
    """The largest number of inputs that a neuron reads."""
    owner, _, attribute = producer.parameter.rpartition(".")
    mask = mask_of(model.get_submodule(owner)) if attribute == "weight" else None
    if mask is None:
        return int(_tensor(model, producer.parameter).shape[producer.input_dim])
    rows: Tensor = mask.narrow(producer.dim, producer.start, producer.length)
    # Kernel entries of one input count once.
    alive = rows.movedim((producer.dim, producer.input_dim), (0, 1)).flatten(2) if rows.dim() > 2 else rows
    alive = alive.any(2) if rows.dim() > 2 else alive.movedim(producer.dim, 0)
    return int(alive.sum(1).max())
