"""The default: large layers are split into blocks, small ones by the paper's rule.

In the paper every neuron draws its own partition. No fast layout holds that, but a few partitions, each for a group of
neurons, can do as well: on embeddings any number of groups does, on Boolean formulas sixteen within noise
(``docs/results/layouts_accuracy.md``, ``docs/results/boolean.md``). A wide layer then is a few dense products, stored
at the size of its non-zeros (``benchmarks/layouts.py``). Narrow layers are split by the paper's rule, as products of a
few rows take longer than they save. The choice depends on shapes alone, never on a clock or a device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.expansion.checks import groups_of, read_by_parent
from fpe_lightning.expansion.config import BaseExpansion, Blocks, Paper, SiteExpansion
from fpe_lightning.expansion.order import block_order
from fpe_lightning.partitions.shared import group_size
from fpe_lightning.sites import Axis, Site
from fpe_lightning.sparse.conv1d import has_inputs_first
from fpe_lightning.sparse.grouped.layout import GROUPED, MOST_BLOCKS
from fpe_lightning.sparse.layout import plain_class
from fpe_lightning.sparse.masked import mask_of

GROUPS = 16
"""Groups of neurons that share a partition."""
NEURONS = 64
"""Fewest neurons of such a group: fewer rows make for slow products."""
SPARE = 4
"""Inputs for each child, at least: whole columns of them are pruned."""


@dataclass(frozen=True, kw_only=True)
class ByShape(BaseExpansion):
    """Large linear layers are split into blocks, all others by the paper's rule; the default.

    Args:
        alpha: Children of each neuron, at least 2.
        layout: ``"by_shape"`` stores blocks as blocks; ``"auto"`` times the layouts that can hold them. It
            never decides which weights are kept.
        optimizer_state: ``"keep"`` copies the state of split parameters to the children, ``"reset"`` drops it.
        seed: Every draw depends on it, on the site's name and its width, and on nothing else.

    Raises:
        ValueError: If a value is unknown.

    Example:
        >>> import torch
        >>> from fpe_lightning.sites import find_sites
        >>> for width in (64, 1024):
        ...     net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        ...     [each] = ByShape().of_sites(net, find_sites(net, torch.zeros(1, 64)))
        ...     print(type(each.expansion).__name__)
        Paper
        Blocks
    """

    layout: Literal["by_shape", "auto"] = "by_shape"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in ("by_shape", "auto"):
            raise ValueError(
                f"ByShape chooses the layout of each site itself, found layout={self.layout!r}; use "
                "fpe.Expansion or fpe.Blocks for a layout of your own."
            )

    @override
    def of_sites(self, model: nn.Module, sites: Sequence[Site], others: Sequence[Site] = ()) -> list[SiteExpansion]:
        """Blocks where a site is large and regular enough, the paper's rule elsewhere."""
        paper = Paper(alpha=self.alpha, optimizer_state=self.optimizer_state, seed=self.seed)
        if any(map(groups_of, model.modules())):  # blocks were not tested with FSDP2
            return [SiteExpansion(site, paper) for site in sites]
        # A weight that is widened along both of its axes, between two hidden layers, is no longer one block a group.
        touched = Counter(axis.parameter for site in (*sites, *others) for axis in site.axes())
        found = []
        for site in sites:
            once = all(touched[producer.parameter] == 1 for producer in site.producers)
            outgoing = outgoing_of_blocks(model, site, self.alpha) if once else None
            if outgoing is None:
                found.append(SiteExpansion(site, paper))
                continue
            blocks = Blocks(
                alpha=self.alpha,
                groups=GROUPS,
                outgoing=outgoing,
                layout="auto" if self.layout == "auto" else "grouped",
                optimizer_state=self.optimizer_state,
                seed=self.seed,
            )
            found.append(SiteExpansion(site, blocks, strict=False))
        return found


def outgoing_of_blocks(model: nn.Module, site: Site, alpha: int) -> Literal["copy", "partition"] | None:
    """How outgoing weights are treated where a site is split into blocks, or None where it should not be.

    Linear layers of at least ``GROUPS * NEURONS`` neurons, a multiple of ``GROUPS``, have to compute the units, and
    linear layers have to read them. Outgoing weights are copied, and whole columns of inputs are pruned for the copies,
    as long as those are at most half of the incoming weights. Where they are more, outgoing weights are partitioned
    among the children. Layers that were split before are split into blocks again where they are made of blocks that
    are large enough, and every child is left with inputs.

    Args:
        model: The model.
        site: A site.
        alpha: Children of each neuron.

    Example:
        >>> from fpe_lightning.sites.find import find_sites
        >>> import torch
        >>> for width, outputs in ((64, 10), (1024, 10), (1024, 256)):
        ...     net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))
        ...     print(outgoing_of_blocks(net, find_sites(net, torch.zeros(1, 64))[0], alpha=2))
        None
        copy
        partition
    """
    # Regular: whole linear layers on both sides, which nothing else reads, in groups of one size.
    if site.width % GROUPS or site.width < GROUPS * NEURONS or not site.producers or not site.consumers:
        return None
    if not all(_is_whole(model, axis, 0, site) for axis in site.producers):
        return None
    if not all(_is_whole(model, axis, 1, site) for axis in site.consumers):
        return None
    if not all(axis.parameter.rpartition(".")[0] in site.input_shapes for axis in (*site.producers, *site.consumers)):
        return None  # somebody else reads the weight, and would find it packed
    if not all(_makes_blocks(model, axis, alpha) for axis in site.producers):
        return None
    if block_order(model, site) is site:
        return None
    incoming = sum(_count(model, axis) for axis in site.producers)
    outgoing = sum(_count(model, axis) for axis in site.consumers)
    values = (alpha - 1) * sum(axis.length for axis in site.values)
    copies = (alpha - 1) * outgoing + values
    # Paid by whole columns of inputs, as long as the copies cost no more than half of them.
    if 2 * copies <= incoming and _leaves_inputs(model, site, alpha, copies):
        return "copy"
    # Else no outgoing weight is copied, and only biases and norms have to be paid for.
    outputs = (model.get_parameter(axis.parameter).shape[1 - axis.dim] for axis in site.consumers)
    return "partition" if min(outputs) >= alpha * SPARE and _leaves_inputs(model, site, alpha, values) else None


def _makes_blocks(model: nn.Module, axis: Axis, alpha: int) -> bool:
    """Whether the children of a producer's neurons make up few, large blocks, each of which reads enough inputs."""
    rows, mask = axis.length // GROUPS, _mask(model, axis)
    if mask is not None:
        # Blocks of an earlier split may be cut again, single rows may not.
        if 2 * int((mask[1:] != mask[:-1]).any(1).sum()) >= len(mask):  # each neuron has inputs of its own
            return False
        rows = math.gcd(rows, group_size(mask.unsqueeze(1)))
    few = alpha * axis.length // rows <= MOST_BLOCKS
    return rows >= NEURONS and few and _fan_in(model, axis) >= alpha * SPARE


def _leaves_inputs(model: nn.Module, site: Site, alpha: int, copies: int) -> bool:
    """Whether each child keeps an input after whole columns of all producers are pruned for the copies."""
    incoming = sum(_count(model, axis) for axis in site.producers)
    more = len(site.producers) > 1  # one of them may lose the remainders of all

    def leaves(axis: Axis) -> bool:
        columns = math.ceil(copies * _count(model, axis) / (incoming * alpha * axis.length)) + more
        return _fan_in(model, axis) // alpha > columns

    return all(map(leaves, site.producers))


def _fan_in(model: nn.Module, axis: Axis) -> int:
    """Inputs of the neuron that has the fewest."""
    mask = _mask(model, axis)
    return model.get_parameter(axis.parameter).shape[1 - axis.dim] if mask is None else int(mask.sum(1).min())


def _owner(model: nn.Module, axis: Axis) -> tuple[nn.Module, str]:
    owner, _, name = axis.parameter.rpartition(".")
    return model.get_submodule(owner), name


def _is_whole(model: nn.Module, axis: Axis, dim: int, site: Site) -> bool:
    """Whether an axis is that of a linear layer's weight, from end to end, one entry a unit."""
    module, name = _owner(model, axis)
    turned = has_inputs_first(plain_class(module))
    if not (isinstance(module, nn.Linear) or turned) or name != "weight" or GROUPED.cannot_hold(module):
        return False
    if read_by_parent(model, axis.parameter.rpartition(".")[0]):
        return False
    dim = 1 - dim if turned else dim
    size = module.get_parameter("weight").shape[dim]
    return (axis.dim, axis.start, axis.length) == (dim, 0, site.width) and size == site.width


def _mask(model: nn.Module, axis: Axis) -> Tensor | None:
    module, name = _owner(model, axis)
    mask = mask_of(module, name)
    return mask.t() if mask is not None and has_inputs_first(plain_class(module)) else mask


def _count(model: nn.Module, axis: Axis) -> int:
    mask = _mask(model, axis)
    return model.get_parameter(axis.parameter).numel() if mask is None else int(mask.count_nonzero())
