"""Widen the producers of a site, and assign each child its share of the inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Generator, Tensor

from fpe_lightning.expansion.draft import Draft
from fpe_lightning.partitions import Partition
from fpe_lightning.partitions.partition import children_masks
from fpe_lightning.partitions.shared import group_size
from fpe_lightning.sites import Axis, Producer, Site
from fpe_lightning.sparse.grouped.blocks import block_rows

AnyAxis = TypeVar("AnyAxis", bound=Axis)


def draw_shares(draft: Draft, site: Site, alpha: int, partition: Partition, generator: Generator) -> list[Tensor]:
    """Which child of each unit inherits which input, for each producer of a site.

    Producers of the same units with equally many inputs (the gate and the value of a gated network) share one
    partition.

    Args:
        draft: The expansion; it is not changed.
        site: The site.
        alpha: Children of each unit.
        partition: Which child inherits which input.
        generator: The only source of randomness.

    Returns:
        For each producer, bool ``(units, alpha, inputs)``. The units are those that it computes, in their order:
        several producers that are concatenated compute different units.

    Raises:
        ValueError: If a unit has fewer inputs than children, or the partition returned no partition.
    """
    alike: dict[tuple[int, bytes], list[Producer]] = {}
    keys = []  # producers with the same units and equally many inputs have the same key
    for producer in site.producers:
        # The gate and the value of one unit must read the same inputs: their product needs both.
        inputs = draft[producer.parameter].value.shape[producer.input_dim]
        keys.append((inputs, _units(producer, site.width).unique().numpy().tobytes()))
        alike.setdefault(keys[-1], []).append(producer)
    shares: dict[tuple[int, bytes], Tensor] = {}
    for key, producers in alike.items():
        # One partition sees the weights of all of them side by side, as kernels of one input.
        weight = torch.cat([_by_unit(draft[p.parameter].value, draft, p, site.width) for p in producers], dim=2)
        masks = [_by_unit(draft[p.parameter].whole_mask(), draft, p, site.width) for p in producers]
        alive = torch.cat(masks, dim=2).any(2)
        # Single neurons may read less, as after a split of the layer below; the layer as a whole must not.
        fan_in = int(alive.sum(1).max())
        if alpha > fan_in:
            raise ValueError(
                f"alpha={alpha} was asked for {site.name}, whose neurons have {fan_in} incoming weights at most: "
                f"some child would inherit nothing. Use alpha <= {fan_in}, or leave this site out."
            )
        shares[key] = children_masks(partition, weight.cpu(), alive.cpu(), alpha, generator)
    return [shares[key] for key in keys]


def common_group(shares: list[Tensor]) -> int:
    """Neurons in each of the largest equal groups that share a partition, in all producers of a site.

    Example:
        >>> common_group([torch.eye(2, dtype=torch.bool).expand(6, 2, 2)])
        6
    """
    return math.gcd(*map(group_size, shares))


def assign_inputs(draft: Draft, site: Site, alpha: int, shares: list[Tensor], group: int | None = None) -> None:
    """Widen the producers, and mask the inputs that a child does not inherit.

    Args:
        draft: The expansion.
        site: The site.
        alpha: Children of each unit.
        shares: From :func:`draw_shares`.
        group: Neurons that share a partition, where children stand in block order; None where they do not.
    """
    for producer, share in zip(site.producers, shares, strict=True):
        tensor = draft[producer.parameter]
        size = tensor.value.shape[producer.dim]
        split = draft.widen(producer, alpha)
        whole = producer.length == size
        # Consecutive rows that share a partition, from which a layout of blocks is found without a search.
        rows = producer.run if group is None else producer.run // site.width * group
        tensor.block = rows if whole else 0
        # For each row of the widened weight: the number of the child, and its unit.
        child = split.child(size)
        inside = child >= 0
        unit = _position(producer, site.width)[split.index(size)[inside] - split.start]
        # Rows of other sites, which are not widened now, keep all their inputs.
        reads = torch.ones(len(child), share.shape[2], dtype=torch.bool)
        reads[inside] = share[unit, child[inside]]
        tensor.restrict(along(reads, tensor.value, producer.dim, producer.input_dim))


def _units(axis: Producer, width: int) -> Tensor:
    return torch.arange(width) if axis.units is None else axis.units


def _position(axis: Producer, width: int) -> Tensor:
    """For each entry of an axis, its unit's position among the units of this axis."""
    return _units(axis, width).unique(return_inverse=True)[1]


def _by_unit(tensor: Tensor, draft: Draft, producer: Producer, width: int) -> Tensor:
    """The stretch of a producer as ``(units, inputs, k)``: several rows of one unit, and kernels, side by side."""
    stretch = tensor.narrow(producer.dim, draft[producer.parameter].start(producer), producer.length)
    rows = stretch.movedim((producer.dim, producer.input_dim), (0, 1))
    rows = rows.reshape(*rows.shape[:2], -1)
    # Entries are sorted by unit; the rank of an entry among those of its unit is its place in the result.
    position = _position(producer, width)
    count = position.bincount()
    order = position.argsort(stable=True)
    rank = torch.arange(len(order)) - (count.cumsum(0) - count)[position[order]]
    by_unit = rows.new_zeros(len(count), int(count.max()), *rows.shape[1:])  # units of fewer rows are filled up
    by_unit[position[order], rank] = rows[order]
    return by_unit.transpose(1, 2).reshape(len(count), rows.shape[1], -1)


def along(rows: Tensor, value: Tensor, dim: int, input_dim: int) -> Tensor:
    """Expand a ``(rows, inputs)`` mask to the shape of a weight that has the rows and the inputs along two of its axes.

    Example:
        >>> along(torch.eye(2, dtype=torch.bool), torch.zeros(2, 2, 3), 0, 1).sum()
        tensor(6)
    """
    shape = [1] * value.dim()
    shape[dim], shape[input_dim] = rows.shape
    return (rows if dim < input_dim else rows.T).reshape(shape).expand(value.shape).clone()


def partition_outputs(draft: Draft, site: Site, alpha: int) -> None:
    """Keep one of the copies of each outgoing weight, for ``outgoing="partition"``.

    Outputs are cut into ``alpha`` stretches. Of the copies that the children of a neuron hold of a stretch, the child
    of the same number keeps its own. Copies tie in magnitude, so magnitude has no say.

    Args:
        draft: The expansion, in which the site is widened already.
        site: The site.
        alpha: Children of each unit.

    Raises:
        ValueError: If there are fewer outputs than children.
    """
    for consumer in distinct(site.consumers):
        if draft[consumer.parameter].separate:  # it is folded already
            continue
        value = draft[consumer.parameter].value
        output_dim = 1 if consumer.dim == 0 else 0
        outputs = value.shape[output_dim]
        if outputs < alpha:
            raise ValueError(
                f'outgoing="partition" assigns the {outputs} outputs of `{consumer.parameter}` to alpha={alpha} '
                'children of each neuron, and some would get none; use outgoing="copy", or a smaller alpha.'
            )
        # The child number of each hidden unit that this layer reads.
        child = torch.full((value.shape[consumer.dim],), -1)
        stretch = child.narrow(0, draft[consumer.parameter].start(consumer), alpha * consumer.length)
        stretch.copy_(torch.arange(alpha * consumer.length) // consumer.run % alpha)
        kept = kept_outputs(child, outputs, alpha)
        draft[consumer.parameter].restrict(along(kept, value, output_dim, consumer.dim))


def kept_outputs(child: Tensor, outputs: int, alpha: int) -> Tensor:
    """Which copies of outgoing weights stay where they are partitioned among the children.

    Args:
        child: int64 ``(hidden,)``, the child number of each hidden unit, ``-1`` for units that are not split.
        outputs: Number of outputs.
        alpha: Children of each neuron.

    Returns:
        Bool ``(outputs, hidden)`` with one True among the copies of each outgoing weight.

    Example:
        >>> kept_outputs(torch.tensor([0, 0, 1, 1]), 2, 2).int()
        tensor([[1, 1, 0, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    stretch = torch.cat([torch.full((count,), part) for part, (_, count) in enumerate(block_rows(outputs, alpha))])
    return (stretch.unsqueeze(1) == child) | (child < 0)


def distinct(axes: Sequence[AnyAxis]) -> list[AnyAxis]:
    """Axes that several roles share count once."""
    return list({(axis.parameter, axis.dim, axis.start): axis for axis in axes}.values())
