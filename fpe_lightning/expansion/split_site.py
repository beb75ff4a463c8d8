"""The split of one site in a draft: widen it, assign its inputs to the children, prune."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set
from dataclasses import dataclass

from torch import Generator, Tensor

from fpe_lightning.expansion.advice import warn_if_costly
from fpe_lightning.expansion.assign import assign_inputs, common_group, draw_shares, partition_outputs
from fpe_lightning.expansion.compact import assign_blocks
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.folded import assign_folded, partition_folded
from fpe_lightning.expansion.order import block_order
from fpe_lightning.expansion.prune import prune_site
from fpe_lightning.expansion.report import SiteReport
from fpe_lightning.expansion.stretches import partition_stretches
from fpe_lightning.partitions import SharedPartition
from fpe_lightning.sites import Axis, Site
from fpe_lightning.sparse.layout import LAYOUTS


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
        """The report of the split, once weights are pruned."""
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
    return sum(draft[parameter].count() for parameter in dict.fromkeys(axis.parameter for axis in axes))


def split_site(draft: Draft, split: SiteExpansion, compact: Set[str]) -> SiteCounts:
    """Split one site in a draft; a pruning rule for the whole model prunes later.

    Args:
        draft: The expansion, in which all sites before this one are split already.
        split: The site, and how it is expanded.
        compact: Weights that are split straight into blocks, or folded where they are.

    Returns:
        The non-zeros before, and with all copies, for the report.

    Raises:
        ValueError: If weights are not finite, a unit has fewer inputs than children, or too little would be left.
    """
    original, alpha = split.site, split.alpha
    everything = [*original.producers, *original.consumers, *original.values]
    for parameter in dict.fromkeys(axis.parameter for axis in everything):
        if draft[parameter].value.is_meta or draft[parameter].value.is_complex():
            kind = "on the meta device" if draft[parameter].value.is_meta else "complex"
            raise ValueError(
                f"`{parameter}` is {kind}, and a split compares the magnitudes of real weights: load or convert the "
                "weights first, or leave this site out."
            )
        if not _is_finite(draft[parameter].value):
            raise ValueError(
                f"`{parameter}` holds NaN or infinity: the run has diverged, so {original.name} is not split."
            )
    before, incoming_before = _count(draft, everything), _count(draft, original.producers)

    # Each child gets its share of the inputs.
    site, partition, generator = original, split.partition, site_generator(split.expansion.seed, original)
    straight = {axis.parameter for axis in site.producers} <= compact and bool(site.producers)
    if straight and isinstance(partition, SharedPartition):
        site, group = assign_blocks(draft, site, alpha, partition, generator)
    elif straight:
        group = 1
        assign_folded(draft, site, alpha, generator)
    else:
        shares = draw_shares(draft, site, alpha, partition, generator)
        group = common_group(shares)
        # A layout that is timed later must not decide which weights are kept, so that "auto" has one order.
        if split.layout == "auto" or (split.layout != "by_shape" and LAYOUTS.get(split.layout).block_order):
            site = site if group == 1 else block_order(draft.model, site)
        assign_inputs(draft, site, alpha, shares, None if site is original else group)

    # Everything else is copied, or partitioned too.
    for axis in (*site.consumers, *site.values):
        if axis.parameter in compact and isinstance(partition, SharedPartition):
            partition_stretches(draft, axis, alpha)
        elif axis.parameter in compact:
            partition_folded(draft, axis, alpha)
        else:
            draft.widen(axis, alpha)
    draft.widened.append((site, alpha))
    if split.expansion.optimizer_state == "reset":
        for axis in everything:
            draft[axis.parameter].reset_state = True
    incoming_copied, outgoing_copied = (_count(draft, axes) for axes in (site.producers, site.consumers))
    outgoing_copied += (alpha - 1) * _count(draft, [axis for axis in site.consumers if axis.parameter in compact])
    counts = SiteCounts(site, alpha, before, incoming_before, incoming_copied, outgoing_copied)
    if split.expansion.outgoing == "partition":
        partition_outputs(draft, site, alpha)

    excess = _count(draft, everything) - before
    if split.expansion.outgoing == "copy" and not split.together:
        child, more = incoming_before / (alpha * original.width), (alpha - 1) * original.width
        warn_if_costly(f"{site.name} by alpha={alpha}", incoming_before, excess, child, excess / more)
    prune_site(draft, split, site, excess, group, in_order=site is not original)
    return counts


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
    name = site.name.replace("_orig_mod.", "")  # the prefix of torch.compile
    digest = hashlib.sha256(f"{seed}:{name}:{site.width}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))
