"""Widen the producers of a site, and hand each child its share of the inputs."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.partition import Partition, children_masks
from fpe_lightning.expansion.partition_shared import group_size
from fpe_lightning.expansion.sites import Producer, Site


def draw_shares(draft: Draft, site: Site, alpha: int, partition: Partition, generator: Generator) -> list[Tensor]:
    """Which child of each unit inherits which input, for each producer of a site.

    Producers with equally many inputs (the gate and the value of a gated network) share one partition.

    Args:
        draft: The expansion; it is not changed.
        site: The site.
        alpha: Children of each unit.
        partition: Which child inherits which input.
        generator: The only source of randomness.

    Returns:
        For each producer, bool ``(units, alpha, inputs)``.

    Raises:
        ValueError: If a unit has fewer inputs than children, or the partition returned no partition.
    """
    together: dict[int, list[Producer]] = {}
    for producer in site.producers:
        together.setdefault(draft[producer.parameter].value.shape[producer.input_dim], []).append(producer)
    shares: dict[int, Tensor] = {}
    for inputs, producers in together.items():
        weight = torch.cat([_by_unit(draft[p.parameter].value, draft, p, site.width) for p in producers], dim=2)
        alive = torch.cat([_by_unit(draft.mask(p.parameter), draft, p, site.width) for p in producers], dim=2).any(2)
        fan_in = int(alive.sum(1).max())
        if alpha > fan_in:
            raise ValueError(
                f"alpha={alpha} was asked for {site.name}, whose neurons have {fan_in} incoming weights at most: "
                f"some child would inherit nothing. Use alpha <= {fan_in}, or leave this site out."
            )
        shares[inputs] = children_masks(partition, weight.cpu(), alive.cpu(), alpha, generator)
    return [shares[draft[producer.parameter].value.shape[producer.input_dim]] for producer in site.producers]


def common_group(shares: list[Tensor]) -> int:
    """Neurons in each of the largest equal groups that share a partition, in all producers of a site.

    Example:
        >>> common_group([torch.eye(2, dtype=torch.bool).expand(6, 2, 2)])
        6
    """
    return math.gcd(*map(group_size, shares))


def hand_out(draft: Draft, site: Site, alpha: int, shares: list[Tensor]) -> None:
    """Widen the producers, and mask what a child does not inherit.

    Args:
        draft: The expansion.
        site: The site.
        alpha: Children of each unit.
        shares: From :func:`draw_shares`.
    """
    for producer, share in zip(site.producers, shares, strict=True):
        size = draft[producer.parameter].value.shape[producer.dim]
        split = draft.widen(producer, alpha)
        whole = producer.dim == 0 and producer.length == size
        draft[producer.parameter].block = producer.run if whole else 0
        child = split.child(size)
        inside = child >= 0
        unit = _units(producer, site.width)[split.index(size)[inside] - split.start]
        rows = torch.ones(len(child), share.shape[2], dtype=torch.bool)
        rows[inside] = share[unit, child[inside]]
        draft.restrict(
            producer.parameter, along(rows, draft[producer.parameter].value, producer.dim, producer.input_dim)
        )


def _units(axis: Producer, width: int) -> Tensor:
    return torch.arange(width) if axis.units is None else axis.units


def _by_unit(tensor: Tensor, draft: Draft, producer: Producer, width: int) -> Tensor:
    """The stretch of a producer as ``(units, inputs, k)``: several rows of one unit, and kernels, side by side."""
    stretch = tensor.narrow(producer.dim, draft.start(producer), producer.length)
    rows = stretch.movedim((producer.dim, producer.input_dim), (0, 1))
    rows = rows.reshape(*rows.shape[:2], -1)[_units(producer, width).argsort(stable=True)]
    return rows.view(width, -1, *rows.shape[1:]).transpose(1, 2).reshape(width, rows.shape[1], -1)


def along(rows: Tensor, value: Tensor, dim: int, input_dim: int) -> Tensor:
    """Expand a ``(rows, inputs)`` mask to the shape of a weight that has the rows and the inputs along two of its axes.

    Example:
        >>> along(torch.eye(2, dtype=torch.bool), torch.zeros(2, 2, 3), 0, 1).sum()
        tensor(6)
    """
    shape = [1] * value.dim()
    shape[dim], shape[input_dim] = rows.shape
    return (rows if dim < input_dim else rows.T).reshape(shape).expand(value.shape).clone()
