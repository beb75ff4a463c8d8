"""Prune as many weights in a draft as its copies added; the rules are in :mod:`fpe_lightning.pruning`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fpe_lightning.expansion.advice import warn_if_costly
from fpe_lightning.expansion.assign import distinct
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.expansion.prune_by_rule import prune_by_rule
from fpe_lightning.expansion.site_weights import flat_rows, restrict_rows
from fpe_lightning.pruning import Magnitude
from fpe_lightning.pruning.columns import Incoming, remove_columns, remove_whole_columns
from fpe_lightning.pruning.magnitude import comparable, keep_largest
from fpe_lightning.sites import Axis, Producer, Site


def prune_site(draft: Draft, split: SiteExpansion, site: Site, excess: int, group: int, in_order: bool) -> None:
    """Prune one site by its rule; nothing happens for a rule that prunes all sites of the model together.

    Args:
        draft: The expansion, in which the site is widened already.
        split: How the site is expanded.
        site: The site as it was widened: its runs say which children are adjacent.
        excess: How many weights have to go.
        group: Neurons that share a partition.
        in_order: Whether children stand in block order.

    Raises:
        ValueError: If too little would be left, or a rule prunes another number of weights.
    """
    rule = split.prune
    if not isinstance(rule, Magnitude):
        prune_by_rule(draft, site, split.alpha, rule, excess)
    elif rule.granularity == "column":
        _prune_columns(draft, site, split.alpha, excess, group, in_order)
    elif rule.scope == "site":
        _prune_weights(draft, [(site, split.alpha)], rule, excess)


def prune_together(draft: Draft, splits: Sequence[SiteExpansion]) -> bool:
    """Prune the sites whose rule is one for all sites of the model; return whether there are any.

    Raises:
        ValueError: If two sites have different such rules, too little would be left, or nothing of one layer.
    """
    together = [split for split in splits if split.together]
    if not together:
        return False
    rules = {split.prune for split in together}
    if len(rules) > 1:
        raise ValueError(
            f'Sites with scope="model" are pruned together by one rule, found {len(rules)}: '
            f"{', '.join(sorted(map(str, rules)))}. Give all of them the same."
        )
    [rule] = rules
    assert isinstance(rule, Magnitude)
    pairs = [(split.site, split.alpha) for split in together]
    producers = [producer for site, _ in pairs for producer in site.producers]
    # Counted once over all tensors, as sites of one model may share weights.
    excess = draft.change()
    described = ", ".join(f"{site.name} by alpha={alpha}" for site, alpha in pairs)
    incoming = sum(draft[name].count() for name in dict.fromkeys(producer.parameter for producer in producers))
    children = [
        sum(draft[name].count() for name in {producer.parameter for producer in site.producers}) / (alpha * site.width)
        for site, alpha in pairs
    ]
    more = sum((alpha - 1) * site.width for site, alpha in pairs)
    warn_if_costly(described, incoming, excess, min(children), excess / more)
    _prune_weights(draft, pairs, rule, excess)
    # An order over several layers may prefer all weights of one of them.
    for name in _candidates(pairs, "both"):
        if not draft[name].count():
            raise ValueError(
                f"One order of magnitudes for the whole model prunes all weights of `{name}`, whose magnitudes are the "
                "smallest of all layers, and nothing would pass it; leave its site out, or use another rule."
            )
    return True


# Single weights.


def _prune_weights(draft: Draft, split: Sequence[tuple[Site, int]], rule: Magnitude, excess: int) -> None:
    """Prune the weights of smallest magnitude of some sites together."""
    candidates = _candidates(split, rule.side)
    tensors = [draft[name] for name in candidates]
    try:
        _keep_largest(tensors, list(candidates.values()), excess)
    except ValueError as error:
        names = " and ".join(candidates)
        described = ", ".join(f"{site.name} by alpha={alpha}" for site, alpha in split)
        raise ValueError(
            f"Splitting {described} adds {excess} copies of outgoing weights, biases and norms, and as many weights of "
            f"{names} have to go. {error} Use a smaller alpha, another pruning rule, or leave this site out."
        ) from error


def _keep_largest(tensors: Sequence[DraftTensor], axes: Sequence[Sequence[tuple[Axis, int]]], excess: int) -> None:
    """Mask the ``excess`` weights of smallest magnitude within the given axes of several tensors."""
    found = [tensor.pieces(own) for tensor, own in zip(tensors, axes, strict=True)]
    pieces, alive = [pieces for pieces, _ in found], sum(count for _, count in found)
    kept = keep_largest(pieces, alive, excess, comparable([tensor.value for tensor in tensors]))
    for tensor, own, stays in zip(tensors, axes, kept, strict=True):
        tensor.keep(own, stays)


def _candidates(split: Sequence[tuple[Site, int]], side: str) -> dict[str, list[tuple[Axis, int]]]:
    """The axes whose weights may go, by parameter: a weight may lie in a producing and in a consuming stretch."""
    candidates: dict[str, list[tuple[Axis, int]]] = {}
    for site, alpha in split:
        axes = {"both": [*site.producers, *site.consumers], "outgoing": site.consumers}.get(side, site.producers)
        for axis in axes:
            candidates.setdefault(axis.parameter, []).append((axis, alpha))
    return candidates


# Whole columns of blocks.


def _prune_columns(draft: Draft, site: Site, alpha: int, excess: int, group: int, in_order: bool) -> None:
    try:
        _prune_whole_columns(draft, site, alpha, excess, group, in_order)
    except ValueError as error:
        raise ValueError(
            f'Splitting {site.name} by alpha={alpha} with prune="columns" takes {excess} incoming weights. {error} '
            'Use a smaller alpha, outgoing="partition", prune="total", or leave this site out.'
        ) from error


def _prune_whole_columns(draft: Draft, site: Site, alpha: int, excess: int, group: int, in_order: bool) -> None:
    producers = distinct(site.producers)
    blocks = [columns for producer in producers if (columns := draft[producer.parameter].columns()) is not None]
    if blocks:
        parts, rest = remove_whole_columns(blocks, excess)
        tensors = cast("list[DraftTensor]", parts)
        if rest:
            _keep_largest(tensors, [[(producer, alpha)] for producer in producers], rest)
        draft.tensors.update({producer.parameter: tensor for producer, tensor in zip(producers, tensors, strict=True)})
        return
    # Rows of a block stand together while columns are counted, and go back to their places with the new masks.
    heights = [producer.run * group // (site.width if in_order else 1) for producer in producers]
    # Units of unequally many rows make no blocks of one height: each row is a block of its own.
    heights = [1 if alpha * p.length % height else height for p, height in zip(producers, heights, strict=True)]
    orders = [_by_block(producer, alpha, height) for producer, height in zip(producers, heights, strict=True)]
    parts_in_rows = [
        Incoming(
            flat_rows(draft, draft[producer.parameter].value, producer, alpha)[order],
            flat_rows(draft, draft[producer.parameter].whole_mask(), producer, alpha)[order],
            height,
            alpha,
        )
        for producer, order, height in zip(producers, orders, heights, strict=True)
    ]
    for producer, order, rows in zip(producers, orders, remove_columns(parts_in_rows, excess), strict=True):
        restrict_rows(draft, producer, rows[order.argsort()], alpha)


def _by_block(producer: Producer, alpha: int, block: int) -> Tensor:
    """The order of rows in which those of a block stand together, all first children before all second ones."""
    row = torch.arange(alpha * producer.length)
    parent = row // (producer.run * alpha) * producer.run + row % producer.run
    child = row // producer.run % alpha
    return (child * producer.length + parent // block).argsort(stable=True)
