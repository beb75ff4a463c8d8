"""The split of one site: widen it, hand its inputs out, make room for the copies."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Generator, Tensor

from fpe_lightning.expansion.assign import common_group, draw_shares, hand_out
from fpe_lightning.expansion.by_shape import Way
from fpe_lightning.expansion.compact import hand_out_blocks
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.order import block_order
from fpe_lightning.expansion.prune import make_ruled_room, make_structured_room
from fpe_lightning.expansion.report import SiteReport
from fpe_lightning.expansion.single import make_single_room
from fpe_lightning.partitions.shared import SharedPartition
from fpe_lightning.pruning.discriminant import BudgetRule
from fpe_lightning.pruning.magnitude import GLOBAL, STRUCTURED
from fpe_lightning.sites.site import Axis, Site
from fpe_lightning.sparse.layout import LAYOUTS


class ExpansionWarning(UserWarning):
    """An expansion that is possible but unlikely to help."""


@dataclass(frozen=True)
class SiteCounts:
    """Non-zeros of a site: before the split, and with all copies."""

    site: Site
    alpha: int
    before: int
    incoming_before: int
    incoming_copied: int
    outgoing_copied: int

    def report(self, draft: Draft) -> SiteReport:
        """What the split did, once weights have made room."""
        site, alpha = self.site, self.alpha
        incoming, outgoing = (_count(draft, axes) for axes in (site.producers, site.consumers))
        return SiteReport(
            name=site.name,
            alpha=alpha,
            width_before=site.width,
            width_after=alpha * site.width,
            fan_in_before=self.incoming_before / site.width,
            fan_in_after=incoming / (alpha * site.width),
            nonzeros=self.before,
            removed_incoming=self.incoming_copied - incoming,
            removed_outgoing=self.outgoing_copied - outgoing,
        )


def _count(draft: Draft, axes: Iterable[Axis]) -> int:
    """Entries of some tensors that may be non-zero; one that plays several roles counts once."""
    return sum(draft.count(parameter) for parameter in dict.fromkeys(axis.parameter for axis in axes))


def split_site(
    draft: Draft,
    site: Site,
    alpha: int,
    way: Way,
    seed: int,
    compact: bool,
) -> SiteCounts:
    """Work out the split of one site in a draft; under a global budget it makes no room yet.

    Args:
        draft: The expansion, with all sites before this one split already.
        site: The site.
        alpha: Children of each unit.
        way: Partition, budget and layout.
        seed: Of the draw, beside the site's name and width.
        compact: Whether blocks are made at the size of their non-zeros.

    Returns:
        What there was, and with all copies, for the report.

    Raises:
        ValueError: If weights are not finite, a unit has fewer inputs than children, or too little would be left.
    """
    everything = [*site.producers, *site.consumers, *site.values]
    for parameter in dict.fromkeys(axis.parameter for axis in everything):
        if not _is_finite(draft[parameter].value):
            raise ValueError(f"`{parameter}` holds NaN or infinity: the run has diverged, so {site.name} is not split.")
    before, incoming_before = _count(draft, everything), _count(draft, site.producers)

    asked, generator = site, site_generator(seed, site)
    if compact and isinstance(way.partition, SharedPartition):
        site, together = hand_out_blocks(draft, site, alpha, way.partition, generator)
    else:
        shares = draw_shares(draft, site, alpha, way.partition, generator)
        together = common_group(shares)
        # A clock must not decide which weights are kept, so that "auto" has one order.
        if way.layout == "auto" or LAYOUTS.get(way.layout).block_order:
            site = site if together == 1 else block_order(draft.model, site)
        hand_out(draft, site, alpha, shares, None if site is asked else together)
    for axis in (*site.consumers, *site.values):
        draft.widen(axis, alpha)
    for attribute in site.attributes:
        draft.grow(attribute, alpha)

    incoming_copied, outgoing_copied = (_count(draft, axes) for axes in (site.producers, site.consumers))
    counts = SiteCounts(site, alpha, before, incoming_before, incoming_copied, outgoing_copied)
    if way.budget == GLOBAL:
        return counts
    excess = _count(draft, everything) - before
    if way.budget != "blocks":  # where outgoing weights are handed out, they cost the incoming ones nothing
        _warn_if_costly(f"{site.name} by alpha={alpha}", excess, incoming_before)
    if isinstance(way.budget, BudgetRule):
        make_ruled_room(draft, site, way.budget, excess)
    elif way.budget in STRUCTURED:
        make_structured_room(draft, site, alpha, together, site is not asked, way.budget, before)
    else:
        make_single_room(draft, [(site, alpha)], way.budget, excess)
    return counts


def make_global_room(draft: Draft, split: list[tuple[Site, int]]) -> None:
    """Let the incoming weights of all sites make room for the copies of all.

    Raises:
        ValueError: If too little would be left, or nothing of one layer.
    """
    producers = [producer for site, _ in split for producer in site.producers]
    excess = draft.change()
    described = ", ".join(f"{site.name} by alpha={alpha}" for site, alpha in split)
    _warn_if_costly(described, excess, _count(draft, producers))
    make_single_room(draft, split, GLOBAL, excess)
    for producer in producers:
        if not draft.count(producer.parameter):
            raise ValueError(
                f'budget="{GLOBAL}" takes all weights of `{producer.parameter}`, whose magnitudes are the smallest of '
                "all layers, and nothing would pass it; leave its site out, or use another budget."
            )


def _is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; the extremes tell, without a copy."""
    return not tensor.numel() or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def site_generator(seed: int, site: Site) -> Generator:
    """The source of randomness of one site: the same on every process, whatever other sites are split or compiled.

    Example:
        >>> site = Site("0", 8, 4, (), (), ())
        >>> site_generator(0, site).initial_seed() == site_generator(0, site).initial_seed()
        True
    """
    name = site.name.replace("_orig_mod.", "")  # what torch.compile puts in front
    digest = hashlib.sha256(f"{seed}:{name}:{site.width}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _warn_if_costly(what: str, excess: int, incoming: int) -> None:
    """Where copies eat a large share of what the neurons read, a split loses accuracy."""
    if 2 * excess > incoming:
        warnings.warn(
            f"Splitting {what} adds {excess} copies to {incoming} incoming weights ({excess / incoming:.0%}), and as "
            "many weights have to go. With few inputs and many outputs a split tends to lose accuracy; consider a "
            "smaller alpha.",
            ExpansionWarning,
            stacklevel=4,
        )
