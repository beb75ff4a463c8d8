"""How each site is split unless asked otherwise (``"by_shape"``): large layers into blocks, small ones as in the paper.

The paper lets every neuron draw a partition of its own. No fast layout holds that, but a few partitions, each for a
group of neurons, can do as well: on embeddings any number of groups does, on Boolean formulas sixteen within noise
(``docs/results/layouts_accuracy.md``, ``docs/results/boolean.md``). A wide layer then is a few dense products, stored
at the size of its non-zeros (``benchmarks/layouts.py``). Narrow layers are split by the paper's rule, as products of a
few rows take longer than what they save. The choice looks at shapes alone, never at a clock or a device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fpe_lightning.expansion.checks import groups_of
from fpe_lightning.expansion.order import block_order
from fpe_lightning.partitions.builtin import Groups, Partition, resolve_partition
from fpe_lightning.partitions.shared import group_size
from fpe_lightning.pruning.discriminant import BudgetRule
from fpe_lightning.pruning.magnitude import BUDGETS
from fpe_lightning.sites.site import Axis, Site
from fpe_lightning.sparse.grouped.layout import GROUPED, MOST_BLOCKS
from fpe_lightning.sparse.layout import LAYOUTS, read_by_parent
from fpe_lightning.sparse.masked import mask_of

GROUPS = 16
"""Groups of neurons that share a partition."""
NEURONS = 64
"""Fewest neurons of such a group: fewer rows make for slow products."""
SPARE = 4
"""Inputs for each child, at least: whole columns of them are to make room."""


@dataclass(frozen=True)
class Way:
    """How one site is split.

    Attributes:
        partition: Which child inherits which input.
        budget: Which weights make room.
        layout: How the result is stored.
        asked: Whether a layout that cannot be had is an error; else the weight is masked.
    """

    partition: Partition
    budget: str | BudgetRule
    layout: str
    asked: bool = True


BY_SHAPE = "by_shape"
PAPER = ("random", "total", "masked")
"""Partition, budget and layout of the paper."""


def completed(
    partition: str | Partition | None, groups: Groups | None, budget: str | BudgetRule | None, layout: str | None
) -> tuple[str | Partition, str | BudgetRule | None, str | None]:
    """What was asked for, with the rest filled in: by shape where nothing was, else as the paper does.

    ``layout="auto"`` asks for nothing else: it decides how a structure is stored, never which weights are kept.

    Args:
        partition: None for none in particular.
        groups: None for none.
        budget: None for none in particular.
        layout: None for none in particular.

    Returns:
        Partition, budget and layout; by shape, the last two may be None, and are those of each site.

    Example:
        >>> completed(None, None, None, None)
        ('by_shape', None, None)
        >>> completed(None, None, "incoming", None)
        ('random', 'incoming', 'masked')
    """
    if partition is None:
        partition = BY_SHAPE if (groups, budget) == (None, None) and layout in (None, "auto") else PAPER[0]
    if isinstance(partition, str) and partition == BY_SHAPE:
        return partition, budget, layout
    return partition, PAPER[1] if budget is None else budget, PAPER[2] if layout is None else layout


def way_of(
    partition: str | Partition | None = None,
    groups: Groups | None = None,
    budget: str | BudgetRule | None = None,
    layout: str | None = None,
) -> Way | None:
    """What was asked for, for all sites alike; None for :data:`BY_SHAPE`.

    Raises:
        ValueError: If one of them does not exist, or does not go with the others.

    Example:
        >>> way_of("shared", None, "total", "grouped").layout
        'grouped'
        >>> way_of() is None
        True
    """
    partition, budget, layout = completed(partition, groups, budget, layout)
    if not (budget is None or isinstance(budget, BudgetRule) or budget in BUDGETS):
        raise ValueError(f"Unknown budget {budget!r}; known: {', '.join(BUDGETS)}.")
    if layout not in (None, "auto"):
        LAYOUTS.get(str(layout))
    if isinstance(partition, str) and partition == BY_SHAPE:
        if groups is not None or budget is not None or layout not in (None, "auto"):
            raise ValueError(
                f'partition="{BY_SHAPE}" decides on the budget and the layout of each site itself, found '
                f"budget={budget!r} and layout={layout!r}; leave them out, and `groups` too."
            )
        return None
    assert budget is not None and layout is not None  # noqa: PT018 - completed() sees to both
    return Way(resolve_partition(partition, groups), budget, layout)


def ways_of(
    model: nn.Module, chosen: Sequence[tuple[Site, int]], asked: Way | None, layout: str | None = None
) -> dict[str, Way]:
    """How each site is split, by its name.

    Args:
        model: The model, all of whose weights are stored masked.
        chosen: Sites, each with its number of children.
        asked: From :func:`way_of`, for all sites; None splits each by its shape.
        layout: Of the blocks where ``asked`` is None: ``"auto"``, or None for ``"grouped"``.

    Example:
        >>> site = Site("0", 4, 8, (), (), ())
        >>> ways_of(nn.Identity(), [(site, 2)], None)["0"].budget
        'total'
    """
    if asked is not None:
        return {site.name: asked for site, _ in chosen}
    paper, shared = Way(resolve_partition(PAPER[0]), *PAPER[1:]), resolve_partition(f"shared:{GROUPS}")
    if any(map(groups_of, model.modules())):  # blocks were not tested with FSDP2
        return {site.name: paper for site, _ in chosen}
    # A weight that is widened along both of its axes, between two hidden layers, is no longer one block a group.
    touched = Counter(axis.parameter for site, _ in chosen for axis in (*site.producers, *site.values, *site.consumers))
    ways = {}
    for site, alpha in chosen:
        once = all(touched[producer.parameter] == 1 for producer in site.producers)
        budget = block_budget(model, site, alpha) if once else None
        ways[site.name] = paper if budget is None else Way(shared, budget, layout or "grouped", asked=False)
    return ways


def block_budget(model: nn.Module, site: Site, alpha: int) -> str | None:
    """The budget by which a site's neurons are split into blocks of a few groups, or None if they should not be.

    They should where linear layers of at least ``GROUPS * NEURONS`` neurons, a multiple of ``GROUPS``, compute the
    units and linear layers read them. Outgoing weights are copied, and whole columns of inputs make room for the
    copies, as long as those are at most half of the incoming weights; where they are more, outgoing weights are handed
    out to the children (``"blocks"``). Layers that were split before should be split into blocks again where they are
    made of blocks that are large enough, and every child is left with inputs.

    Args:
        model: The model.
        site: A site.
        alpha: Children of each neuron.

    Example:
        >>> from fpe_lightning.sites.find import find_sites
        >>> import torch
        >>> for width, outputs in ((64, 10), (1024, 10), (1024, 256)):
        ...     net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))
        ...     print(block_budget(net, find_sites(net, torch.zeros(1, 64))[0], alpha=2))
        None
        columns
        blocks
    """
    if site.width % GROUPS or site.width < GROUPS * NEURONS or not site.producers or not site.consumers:
        return None
    if not all(_is_whole(model, axis, 0, site) for axis in site.producers):
        return None
    if not all(_is_whole(model, axis, 1, site) for axis in site.consumers):
        return None
    if not all(axis.parameter.rpartition(".")[0] in site.reads for axis in (*site.producers, *site.consumers)):
        return None  # somebody else reads the weight, and would find it packed
    if not all(_makes_blocks(model, axis, alpha) for axis in site.producers):
        return None
    if block_order(model, site) is site:
        return None
    incoming = sum(_count(model, axis) for axis in site.producers)
    outgoing = sum(_count(model, axis) for axis in site.consumers)
    values = (alpha - 1) * sum(axis.length for axis in site.values)
    copies = (alpha - 1) * outgoing + values
    if 2 * copies <= incoming and _leaves_inputs(model, site, alpha, copies):
        return "columns"
    outputs = (model.get_parameter(axis.parameter).shape[0] for axis in site.consumers)
    return "blocks" if min(outputs) >= alpha * SPARE and _leaves_inputs(model, site, alpha, values) else None


def _makes_blocks(model: nn.Module, axis: Axis, alpha: int) -> bool:
    """Whether the children of a producer's neurons make up few, large blocks, each of which reads enough inputs."""
    rows, mask = axis.length // GROUPS, _mask(model, axis)
    if mask is not None:
        if 2 * int((mask[1:] != mask[:-1]).any(1).sum()) >= len(mask):  # each neuron reads what it wants
            return False
        rows = math.gcd(rows, group_size(mask.unsqueeze(1)))
    few = alpha * axis.length // rows <= MOST_BLOCKS
    return rows >= NEURONS and few and _fan_in(model, axis) >= alpha * SPARE


def _leaves_inputs(model: nn.Module, site: Site, alpha: int, copies: int) -> bool:
    """Whether each child keeps an input where whole columns of all producers make room for the copies."""
    incoming = sum(_count(model, axis) for axis in site.producers)
    more = len(site.producers) > 1  # what is left over by each may go from one of them

    def leaves(axis: Axis) -> bool:
        columns = math.ceil(copies * _count(model, axis) / (incoming * alpha * axis.length)) + more
        return _fan_in(model, axis) // alpha > columns

    return all(map(leaves, site.producers))


def _fan_in(model: nn.Module, axis: Axis) -> int:
    """Inputs of the neuron that has the fewest."""
    mask = _mask(model, axis)
    return model.get_parameter(axis.parameter).shape[1] if mask is None else int(mask.sum(1).min())


def _owner(model: nn.Module, axis: Axis) -> tuple[nn.Module, str]:
    owner, _, name = axis.parameter.rpartition(".")
    return model.get_submodule(owner), name


def _is_whole(model: nn.Module, axis: Axis, dim: int, site: Site) -> bool:
    """Whether an axis is that of a linear layer's weight, from end to end, one entry a unit."""
    module, name = _owner(model, axis)
    if not isinstance(module, nn.Linear) or name != "weight" or GROUPED.cannot_hold(module):
        return False
    if read_by_parent(model, axis.parameter.rpartition(".")[0]):
        return False
    return (axis.dim, axis.start, axis.length) == (dim, 0, site.width) and module.weight.shape[dim] == site.width


def _mask(model: nn.Module, axis: Axis) -> Tensor | None:
    module, name = _owner(model, axis)
    return mask_of(module, name)


def _count(model: nn.Module, axis: Axis) -> int:
    mask = _mask(model, axis)
    return model.get_parameter(axis.parameter).numel() if mask is None else int(mask.count_nonzero())
