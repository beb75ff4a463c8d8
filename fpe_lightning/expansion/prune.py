"""Prune as many weights in a draft as its copies added; the rules are in :mod:`fpe_lightning.pruning`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.advice import warn_if_costly
from fpe_lightning.expansion.assign import distinct
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft, DraftTensor
from fpe_lightning.pruning import FinalizingRule, Magnitude, PruningRule, SiteWeights
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
        _prune_by_rule(draft, site, split.alpha, rule, excess)
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
    excess = draft.change()
    described = ", ".join(f"{site.name} by alpha={alpha}" for site, alpha in pairs)
    incoming = sum(draft.count(name) for name in dict.fromkeys(producer.parameter for producer in producers))
    children = [
        sum(map(draft.count, {producer.parameter for producer in site.producers})) / (alpha * site.width)
        for site, alpha in pairs
    ]
    more = sum((alpha - 1) * site.width for site, alpha in pairs)
    warn_if_costly(described, incoming, excess, min(children), excess / more)
    _prune_weights(draft, pairs, rule, excess)
    for name in _candidates(pairs, "both"):
        if not draft.count(name):
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
            _flat_rows(draft, draft[producer.parameter].value, producer, alpha)[order],
            _flat_rows(draft, draft.mask(producer.parameter), producer, alpha)[order],
            height,
            alpha,
        )
        for producer, order, height in zip(producers, orders, heights, strict=True)
    ]
    for producer, order, rows in zip(producers, orders, remove_columns(parts_in_rows, excess), strict=True):
        _restrict_rows(draft, producer, rows[order.argsort()], alpha)


def _by_block(producer: Producer, alpha: int, block: int) -> Tensor:
    """The order of rows in which those of a block stand together, all first children before all second ones."""
    row = torch.arange(alpha * producer.length)
    parent = row // (producer.run * alpha) * producer.run + row % producer.run
    child = row // producer.run % alpha
    return (child * producer.length + parent // block).argsort(stable=True)


# Rules that are no order of magnitudes.


def _prune_by_rule(draft: Draft, site: Site, alpha: int, rule: PruningRule, excess: int) -> None:
    def value_of(name: str) -> Tensor:
        return draft.tensors[name].value if name in draft.tensors else draft.model.get_parameter(name).detach()

    weights, before = _site_weights(draft, site, alpha, value_of), draft.change()
    with _naming(site, rule):
        both = {axis.parameter for axis in site.producers} & {axis.parameter for axis in site.consumers}
        if both:
            raise ValueError(f"`{min(both)}` computes and reads its neurons, and would go twice; use a Magnitude.")
        incoming, outgoing = rule.keep(weights, excess)
        expected = [mask.shape for mask in (*weights.incoming_masks, *weights.outgoing_masks)]
        found = [(mask.shape, mask.dtype) for mask in (*incoming, *outgoing)]
        if found != [(shape, torch.bool) for shape in expected]:
            raise ValueError(
                f"it has to return bool masks of shapes {_sizes(expected)}, found {_sizes(s for s, _ in found)}."
            )
    for axis, mask in zip(_weights_of(site), [*incoming, *(each.transpose(0, 1) for each in outgoing)], strict=True):
        _restrict_rows(draft, axis, mask, alpha)
    removed = before - draft.change()
    if removed != excess:
        raise ValueError(
            f"The pruning rule {type(rule).__name__} removes {removed} weights of {site.name} where {excess} have to "
            "go."
        )


@contextmanager
def _naming(site: Site, rule: PruningRule) -> Iterator[None]:
    """Say which site a rule refuses."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{site.name} cannot be pruned by {type(rule).__name__}: {error}") from error


def _sizes(shapes: Iterable[torch.Size]) -> str:
    return ", ".join(str(tuple(shape)) for shape in shapes)


def finalized_values(draft: Draft, model: nn.Module, splits: Sequence[SiteExpansion]) -> dict[str, Tensor]:
    """The values that finalizing rules give to parameters of a model, or of an average of it.

    Args:
        draft: The expansion, with its last masks; it is not changed.
        model: The model of the draft, or a module of its structure.
        splits: The sites, each with its expansion.

    Returns:
        A tensor of the new shape for each parameter that a rule changes, by name.
    """
    values: dict[str, Tensor] = {}

    def value_of(name: str) -> Tensor:
        if name in values:
            return values[name]
        tensor = model.get_parameter(name).detach()
        return draft.tensors[name].follow(tensor) if name in draft.tensors else tensor

    for split in splits:
        if not isinstance(split.prune, FinalizingRule):
            continue
        site, alpha = split.site, split.alpha
        before = _site_weights(draft, site, alpha, value_of)
        with _naming(site, split.prune):
            after = split.prune.finalize(before)
            old, new = ([*each.incoming, *each.outgoing] for each in (before, after))
            if [each.shape for each in new] != [each.shape for each in old]:
                raise ValueError(f"it has to return weights of shapes {_sizes(e.shape for e in old)}.")
            if not all(bool(each.isfinite().all()) for each in new):
                raise ValueError("the weights that it returns hold NaN or infinity.")
        rows = [*after.incoming, *(each.transpose(0, 1) for each in after.outgoing)]
        for axis, weights in zip(_weights_of(site), rows, strict=True):
            value = value_of(axis.parameter).clone()
            stretch = _rows_in_place(draft, value, axis, alpha)
            stretch.copy_(weights.reshape(stretch.shape))
            values[axis.parameter] = value.masked_fill_(~draft.mask(axis.parameter), 0)
        for axis, bias in zip(_weights_of(site), [*after.biases, *after.outgoing_biases], strict=True):
            if bias is not None:
                value = value_of(_bias_of(axis)).clone()
                _own_bias(draft, value, axis, alpha).copy_(bias)
                values[_bias_of(axis)] = value
    return values


def _site_weights(draft: Draft, site: Site, alpha: int, value_of: Callable[[str], Tensor]) -> SiteWeights:
    """The weights of a site that is widened in a draft, on the CPU."""

    def rows(axis: Axis, tensor: Tensor) -> Tensor:
        return _flat_rows(draft, tensor, axis, alpha).cpu()

    def bias(axis: Axis) -> Tensor | None:
        owner, _, name = axis.parameter.rpartition(".")
        if name != "weight" or draft.model.get_submodule(owner)._parameters.get("bias") is None:
            return None
        return _own_bias(draft, value_of(_bias_of(axis)), axis, alpha).cpu().clone()

    masks = [rows(axis, draft.mask(axis.parameter)) for axis in _weights_of(site)]
    weights = [rows(axis, value_of(axis.parameter)) * mask for axis, mask in zip(_weights_of(site), masks, strict=True)]
    split_at, biases = len(distinct(site.producers)), [bias(axis) for axis in _weights_of(site)]
    own = {_bias_of(axis) for axis in site.producers}
    return SiteWeights(
        incoming=weights[:split_at],
        incoming_masks=masks[:split_at],
        outgoing=[weight.transpose(0, 1) for weight in weights[split_at:]],
        outgoing_masks=[mask.transpose(0, 1) for mask in masks[split_at:]],
        biases=biases[:split_at],
        outgoing_biases=biases[split_at:],
        between=[axis.parameter for axis in site.values if axis.parameter not in own],
    )


def _weights_of(site: Site) -> list[Axis]:
    """The axes of producers, then those of consumers, each once."""
    return [*distinct(site.producers), *distinct(site.consumers)]


def _own_bias(draft: Draft, bias: Tensor, axis: Axis, alpha: int) -> Tensor:
    """Of the bias of a layer that computes other units too, those of the site; all of a layer that reads them."""
    return bias.narrow(0, draft.start(axis), alpha * axis.length) if isinstance(axis, Producer) else bias


def _bias_of(axis: Axis) -> str:
    return f"{axis.parameter.rpartition('.')[0]}.bias".lstrip(".")


# Weights as rows.


def _rows_in_place(draft: Draft, tensor: Tensor, axis: Axis, alpha: int) -> Tensor:
    """A view of the widened stretch of a tensor with the children first, then inputs (or outputs), then the rest."""
    other = axis.input_dim if isinstance(axis, Producer) else 1 if axis.dim == 0 else 0
    stretch = tensor.narrow(axis.dim, draft.start(axis), alpha * axis.length)
    return stretch.movedim((axis.dim, other), (0, 1))


def _flat_rows(draft: Draft, tensor: Tensor, axis: Axis, alpha: int) -> Tensor:
    """The same as ``(children, inputs or outputs, k)``."""
    rows = _rows_in_place(draft, tensor, axis, alpha)
    return rows.reshape(*rows.shape[:2], -1)


def _restrict_rows(draft: Draft, axis: Axis, rows: Tensor, alpha: int) -> None:
    """Restrict a mask to ``rows`` within the widened stretch of an axis."""
    mask = draft.mask(axis.parameter).clone()
    stretch = _rows_in_place(draft, mask, axis, alpha)
    stretch.copy_(rows.reshape(stretch.shape))
    draft.restrict(axis.parameter, mask)
