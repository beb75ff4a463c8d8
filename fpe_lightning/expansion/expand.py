"""The one verb: split the neurons of a model in place, at a fixed number of non-zero parameters.

The steps of the paper's definition, for each site (a dense layer pair ``W1``, ``W2`` in the simplest case):

1. every neuron becomes ``alpha`` children that stand beside each other, and its incoming weights are handed out to
   them;
2. outgoing weights, biases and norm entries are copied;
3. the weights of smallest magnitude go until the number of non-zeros is what it was;
4. the masks are fixed, and training goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.expansion.budget import GLOBAL, STRUCTURED, count_nonzeros
from fpe_lightning.expansion.compact import fits_compact, hand_out_blocks, put_in_place
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.hand_out import common_group, draw_shares, hand_out
from fpe_lightning.expansion.held import check_unwrapped, check_whole
from fpe_lightning.expansion.optimizer import as_optimizers, follow_states, replace_parameters
from fpe_lightning.expansion.order import block_order
from fpe_lightning.expansion.partition import Groups, Partition
from fpe_lightning.expansion.partition_shared import SharedPartition
from fpe_lightning.expansion.refit import BudgetRule, make_ruled_room, settle
from fpe_lightning.expansion.report import ExpansionReport, SiteReport
from fpe_lightning.expansion.select import Alpha, Sites, check_alpha, select_sites, sites_of
from fpe_lightning.expansion.single import make_single_room
from fpe_lightning.expansion.sites import Axis, Site
from fpe_lightning.expansion.storage_choice import SEMI_STRUCTURED, choose_storage
from fpe_lightning.expansion.structured import make_structured_room
from fpe_lightning.expansion.ways import Way, way_of, ways_of
from fpe_lightning.sparse.autotune import choose_fastest, name_of, store
from fpe_lightning.sparse.storage import stored_masked


class ExpansionWarning(UserWarning):
    """An expansion that is possible but unlikely to help."""


def expand(
    model: nn.Module,
    alpha: Alpha = 2,
    partition: str | Partition | None = None,
    groups: Groups | None = None,
    sites: Sites = None,
    budget: str | BudgetRule | None = None,
    seed: int = 0,
    layout: str | None = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    example_inputs: Any = None,
    optimizer_state: str = "follow",
    copies: Iterable[nn.Module] = (),
) -> ExpansionReport:
    """Split the neurons of a model in place, and keep its number of non-zero parameters (Fixed Parameter Expansion).

    The function that the model computes changes, as ``relu(a + b)`` is not ``relu(a) + relu(b)``; training on
    recovers it. The order of parameters, and everything that is not split, stay as they are. If anything is refused,
    the model and the optimizer are left untouched.

    Args:
        model: Any module. Parameters of split layers are replaced by wider ones; what took note of the old ones, such
            as a ``DistributedDataParallel`` around it, has to be made anew.
        alpha: Children of each neuron, at least 2; or a mapping from site names (or globs) to it.
        partition: Which child inherits which input: ``"random"`` (the paper's rule), ``"shared"``,
            ``"shared:<groups of neurons>"``, ``"contiguous"``, ``"contiguous:<groups of neurons>"``, ``"feature"``,
            ``"clause"``, ``"semi_structured"``, ``"overlapping"``, or a callable (see
            :mod:`fpe_lightning.expansion.partition`). ``"by_shape"`` splits large linear layers into blocks that are
            stored and computed at the size of their non-zeros, and all others by the paper's rule; it decides on
            budget and layout too (see :mod:`fpe_lightning.expansion.ways`). None stands for it, and for ``"random"``
            where ``groups``, a ``budget`` or a ``layout`` other than ``"auto"`` is given.
        groups: For ``"clause"``: lists of input indices, one a clause.
        sites: Names or globs of the sites to split, sites from ``find_sites``, or None for all.
        budget: Which weights make room: ``"total"`` (the paper's rule, and what None stands for beside a partition),
            ``"incoming"`` or ``"outgoing"`` (single weights of each site), ``"global"`` (incoming weights of all sites
            together, which suits deep networks; see :mod:`fpe_lightning.expansion.budget`),
            ``"columns"`` or ``"blocks"`` (whole ones; see :mod:`fpe_lightning.expansion.room`), or a rule such as
            :class:`~fpe_lightning.expansion.refit.DiscriminantRefit`.
        seed: Every draw depends on it, on the site's name and its width, and on nothing else.
        layout: How the result is stored: ``"masked"`` (any structure, and what None stands for beside a partition or a
            budget), ``"grouped"`` (dense blocks at the size of the
            non-zeros, for partitions that neurons share; children that share one then stand together, see
            :mod:`fpe_lightning.expansion.order`), ``"semi_structured"`` (2:4 kernels of GPUs, for ``alpha=2`` and the
            partition of that name; see :mod:`fpe_lightning.sparse.semi_structured`), or ``"auto"``: each weight in the
            layout that is fastest for its shape, dtype and batch, by the clock (of a training step in training mode,
            else of a forward pass). Times vary, so this is never done unless asked for; see
            :mod:`fpe_lightning.sparse.autotune` for what keeps such runs reproducible.
        optimizer: One or several optimizers that hold the model's parameters; they are kept valid.
        example_inputs: What the model's forward takes, a tensor, a tuple of arguments or a dict of keyword arguments;
            needed to find the sites, unless ``sites`` holds them or the model has an ``example_input_array``.
        optimizer_state: ``"follow"``, or ``"reset"`` to begin the state of split parameters anew.
        copies: Modules of the same structure, such as averages of the weights, that are split alike: with the model's
            masks, and their own values.

    Returns:
        Widths, fan-ins and non-zeros before and after.

    Raises:
        TypeError: If ``optimizer`` is something else.
        ValueError: If an argument is bad, no site can be split, weights hold NaN or infinity, too little is left
            to make room for the copies of outgoing weights, one of ``copies`` has another structure, or the model is
            wrapped by DDP or sharded.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> report = expand(model, alpha=2, example_inputs=torch.randn(1, 64))
        >>> model[0].weight.shape, report.nonzeros_before, report.nonzeros_after
        (torch.Size([16, 64]), 547, 547)
    """
    asked = way_of(partition, groups, budget, layout)
    check_unwrapped(model)
    optimizers = as_optimizers(optimizer)
    models = [model, *copies]
    before = count_nonzeros(model)
    with ExitStack() as masked:
        for each in models:
            masked.enter_context(stored_masked(each, optimizers))
        chosen = _choose(model, alpha, sites, example_inputs)
        check_whole(model, [site for site, _ in chosen])
        ways = ways_of(model, chosen, asked, layout)
        _check_layout(ways, chosen)
        draft = Draft(model)
        compact = fits_compact(model, chosen, ways, optimizers)
        done = []
        for site, factor in chosen:
            done.append(_split(draft, site, factor, ways[site.name], seed, site.name in compact))
        if together := [(site, factor) for site, factor in chosen if ways[site.name].budget == GLOBAL]:
            _make_global_room(draft, together)
        reports = tuple(each.report(draft) for each in done)
        if change := draft.change():
            raise ValueError(
                f"Splitting {', '.join(site.name for site, _ in chosen)} together would change the number of non-zeros "
                f"by {change}, as two of them share a weight in a way that is not handled; leave one of them out."
            )
        states = follow_states(draft, optimizers, optimizer_state)
        storages = choose_storage(draft, [site for site, _ in chosen], ways, states)
        replace_parameters(optimizers, draft.commit(models[1:]), states)
    apart = [tensor for tensor in draft.tensors.values() if tensor.apart]
    del draft, states  # and with them all that was widened, before the largest tensors are made
    choices = {}
    if layout == "auto":
        reads = {owner: shape for site, _ in chosen for owner, shape in site.reads.items()}
        choices = choose_fastest(model, storages, reads)
        storages = {
            module: [s for s in found if name_of(s) == choices[module].layout] for module, found in storages.items()
        }
    for each, (module, found) in itertools.product(models, storages.items()):
        for storage in found:
            store(each.get_submodule(module), storage, optimizers)
    put_in_place(apart, models, optimizers, optimizer_state)
    if isinstance(budget, BudgetRule):
        for each, (site, _) in itertools.product(models, chosen):
            settle(each, site, budget)
    after = count_nonzeros(model)
    assert after == before, f"the budget was not kept: {before} non-zeros before, {after} after"
    return ExpansionReport(before, after, reports, {name: str(choice) for name, choice in choices.items()})


def _choose(model: nn.Module, alpha: Alpha, sites: Sites, example_inputs: Any) -> list[tuple[Site, int]]:
    """The sites to split, each with its factor; sites that are already found need no example inputs."""
    given = [site for site in sites or () if isinstance(site, Site)]
    if given:
        return select_sites(given, alpha)
    check_alpha(alpha)
    names = cast("str | Sequence[str] | None", sites)
    return select_sites(sites_of(model, example_inputs), alpha, names)


def _check_layout(ways: Mapping[str, Way], chosen: list[tuple[Site, int]]) -> None:
    for site, alpha in chosen:
        if ways[site.name].layout == SEMI_STRUCTURED and alpha > 2:
            raise ValueError(
                f'layout="semi_structured" was asked for {site.name} with alpha={alpha}, whose children read 1 of '
                f"{alpha} inputs: that is sparser than 2:4, and a 2:4 kernel would multiply zeros. Use alpha=2, or "
                'layout="grouped" with partition="shared:4".'
            )


@dataclass(frozen=True)
class _Counts:
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


def _split(
    draft: Draft,
    site: Site,
    alpha: int,
    way: Way,
    seed: int,
    compact: bool,
) -> _Counts:
    """Work out the split of one site; under a global budget it makes no room yet."""
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
        if way.layout in ("grouped", "auto"):  # what is timed later must not decide which weights are kept
            site = site if together == 1 else block_order(draft.model, site)
        hand_out(draft, site, alpha, shares, None if site is asked else together)
    for axis in (*site.consumers, *site.values):
        draft.widen(axis, alpha)
    for attribute in site.attributes:
        draft.grow(attribute, alpha)

    incoming_copied, outgoing_copied = (_count(draft, axes) for axes in (site.producers, site.consumers))
    excess = _count(draft, everything) - before
    if way.budget not in (
        "blocks",
        GLOBAL,
    ):  # where outgoing weights are handed out, incoming ones pay nothing for them
        _warn_if_costly(f"{site.name} by alpha={alpha}", excess, incoming_before)
    if isinstance(way.budget, BudgetRule):
        make_ruled_room(draft, site, way.budget, excess)
    elif way.budget in STRUCTURED:
        make_structured_room(draft, site, alpha, together, site is not asked, way.budget, before)
    elif way.budget != GLOBAL:
        make_single_room(draft, [(site, alpha)], way.budget, excess)
    return _Counts(site, alpha, before, incoming_before, incoming_copied, outgoing_copied)


def _make_global_room(draft: Draft, split: list[tuple[Site, int]]) -> None:
    """Let the incoming weights of all sites make room for the copies of all."""
    excess = draft.change()
    incoming = _count(draft, [producer for site, _ in split for producer in site.producers])
    _warn_if_costly(", ".join(f"{site.name} by alpha={alpha}" for site, alpha in split), excess, incoming)
    make_single_room(draft, split, GLOBAL, excess)
    for producer in [producer for site, _ in split for producer in site.producers]:
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
    """METHOD: where copies eat a large share of what the neurons read, a split loses accuracy."""
    if 2 * excess > incoming:
        warnings.warn(
            f"Splitting {what} adds {excess} copies to {incoming} incoming weights ({excess / incoming:.0%}), and as "
            "many weights have to go. With few inputs and many outputs a split tends to lose accuracy; consider a "
            "smaller alpha.",
            ExpansionWarning,
            stacklevel=4,
        )
