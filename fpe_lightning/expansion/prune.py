"""Make room at one site by whole columns and blocks; the rules are in :mod:`fpe_lightning.pruning.columns`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.assign import along
from fpe_lightning.expansion.compact import CompactTensor
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.pruning.columns import Incoming, hand_out_outgoing, remove_columns, remove_whole_columns
from fpe_lightning.pruning.discriminant import BudgetRule
from fpe_lightning.pruning.magnitude import comparable, keep_largest
from fpe_lightning.sites.site import Axis, Producer, Site


def make_structured_room(
    draft: Draft, site: Site, alpha: int, group: int, in_order: bool, budget: str, before: int
) -> None:
    """Remove as many of a site's weights as its copies added, by the rule ``"columns"`` or ``"blocks"``.

    Args:
        draft: The expansion, in which the site is widened already.
        site: The site as it was widened: its runs say which children stand together.
        alpha: Children of each unit.
        group: Neurons that share a partition.
        in_order: Whether children stand in block order.
        budget: ``"columns"`` or ``"blocks"``.
        before: Non-zeros of the site's tensors before the split.

    Raises:
        ValueError: If too little would be left.
    """
    if budget == "blocks":
        for consumer in _distinct(site.consumers):
            _hand_out(draft, consumer, alpha)
    names = [axis.parameter for axis in (*site.producers, *site.consumers, *site.values)]
    excess = sum(draft.count(name) for name in dict.fromkeys(names)) - before
    try:
        _remove(draft, site, alpha, group, in_order, excess)
    except ValueError as error:
        raise ValueError(
            f"Splitting {site.name} by alpha={alpha} with budget={budget!r} takes {excess} incoming weights. {error} "
            'Use a smaller alpha, budget="blocks" or "total", or leave this site out.'
        ) from error


def _remove(draft: Draft, site: Site, alpha: int, group: int, in_order: bool, excess: int) -> None:
    producers = _distinct(site.producers)
    compact = [tensor for p in producers if isinstance(tensor := draft[p.parameter], CompactTensor)]
    if compact:
        parts, rest = remove_whole_columns(compact, excess)
        pieces = [part.pieces() for part in parts]
        alive = sum(part.count() for part in parts)
        kept = keep_largest(pieces, alive, rest, comparable([part.value for part in parts])) if rest else []
        for part, blocks in zip(parts, kept, strict=False):
            part.keep(blocks)
        draft.tensors.update({producer.parameter: part for producer, part in zip(producers, parts, strict=True)})
        return
    heights = [producer.run * group // (site.width if in_order else 1) for producer in producers]
    orders = [_by_block(producer, alpha, height) for producer, height in zip(producers, heights, strict=True)]
    parts_in_rows = [
        Incoming(
            _rows(draft[producer.parameter].value, draft, producer, alpha)[order],
            _rows(draft.mask(producer.parameter), draft, producer, alpha)[order],
            height,
            alpha,
        )
        for producer, order, height in zip(producers, orders, heights, strict=True)
    ]
    for producer, order, rows in zip(producers, orders, remove_columns(parts_in_rows, excess), strict=True):
        mask = draft.mask(producer.parameter).clone()
        moved = mask.narrow(producer.dim, draft.start(producer), alpha * producer.length)
        moved = moved.movedim((producer.dim, producer.input_dim), (0, 1))
        moved.copy_(rows[order.argsort()].view(moved.shape))
        draft.restrict(producer.parameter, mask)


def _distinct(axes: tuple[Axis, ...] | tuple[Producer, ...]) -> list:
    """Axes that several roles share count once."""
    return list({(axis.parameter, axis.dim, axis.start): axis for axis in axes}.values())


def _rows(tensor: Tensor, draft: Draft, producer: Producer, alpha: int) -> Tensor:
    """The widened stretch of a producer as ``(rows, inputs, k)``."""
    stretch = tensor.narrow(producer.dim, draft.start(producer), alpha * producer.length)
    moved = stretch.movedim((producer.dim, producer.input_dim), (0, 1))
    return moved.reshape(*moved.shape[:2], -1)


def _child(axis: Axis, alpha: int) -> Tensor:
    """The child number of each entry of a widened stretch."""
    return torch.arange(alpha * axis.length) // axis.run % alpha


def _by_block(producer: Producer, alpha: int, block: int) -> Tensor:
    """The order of rows in which those of a block stand together, all first children before all second ones."""
    row = torch.arange(alpha * producer.length)
    parent = row // (producer.run * alpha) * producer.run + row % producer.run
    return (_child(producer, alpha) * producer.length + parent // block).argsort(stable=True)


def _hand_out(draft: Draft, consumer: Axis, alpha: int) -> None:
    """Leave one of the copies of each outgoing weight."""
    value = draft[consumer.parameter].value
    output_dim = 1 if consumer.dim == 0 else 0
    outputs = value.shape[output_dim]
    if outputs < alpha:
        raise ValueError(
            f'budget="blocks" hands out the {outputs} outputs of `{consumer.parameter}` to alpha={alpha} children of '
            'each neuron, and some would get none; use budget="columns", or a smaller alpha.'
        )
    child = torch.full((value.shape[consumer.dim],), -1)
    child.narrow(0, draft.start(consumer), alpha * consumer.length).copy_(_child(consumer, alpha))
    stays = hand_out_outgoing(child, outputs, alpha)
    draft.restrict(consumer.parameter, along(stays, value, output_dim, consumer.dim))


def make_ruled_room(draft: Draft, site: Site, rule: BudgetRule, excess: int) -> None:
    """Remove what a rule names from a site that is widened already.

    Raises:
        ValueError: If the site is no pair of whole linear layers, or the rule keeps too many or too few weights.
    """
    producer, consumer = _pair(draft.model, site)
    incoming, outgoing = (draft[f"{name}.weight"] for name in (producer, consumer))
    alive = draft.mask(f"{producer}.weight").cpu()
    weight = incoming.value.cpu() * alive
    has_bias = draft.model.get_submodule(producer).bias is not None
    bias = draft[f"{producer}.bias"].value.cpu() if has_bias else None
    before = int(alive.sum()) + outgoing.count()
    kept = rule.keep(weight, bias, alive, outgoing.value.shape[0], excess)
    draft.restrict(f"{producer}.weight", kept[0])
    draft.restrict(f"{consumer}.weight", kept[1])
    removed = before - incoming.count() - outgoing.count()
    if removed != excess:
        raise ValueError(f"The budget rule removes {removed} weights of {site.name} where {excess} have to go.")


def settle(model: nn.Module, site: Site, rule: BudgetRule) -> None:
    """Let a rule change the weights of a site that is split."""
    producer, consumer = (model.get_submodule(name) for name in _pair(model, site))
    assert isinstance(producer, nn.Linear)
    assert isinstance(consumer, nn.Linear)
    rule.settle(producer, consumer)


def _pair(model: nn.Module, site: Site) -> tuple[str, str]:
    """Names of the two linear layers of a site."""
    names = [axis.parameter.removesuffix(".weight") for axis in (*site.producers, *site.consumers)]
    linear = all(isinstance(model.get_submodule(name), nn.Linear) for name in names if name)
    norms = {axis.parameter for axis in site.values} - {f"{names[0]}.bias"}
    if len(names) != 2 or not linear or norms:
        raise ValueError(f"A budget rule needs one linear layer before and one after, which {site.name} has not.")
    return names[0], names[1]
