"""The one verb: split the neurons of a model in place, at a fixed number of non-zero parameters.

The steps of the paper's definition, for each site (a dense layer pair ``W1``, ``W2`` in the simplest case):

1. every neuron becomes ``alpha`` children that stand beside each other, and its incoming weights are handed out to
   them;
2. outgoing weights, biases and norm entries are copied;
3. the weights of smallest magnitude go until the number of non-zeros is what it was;
4. the masks are fixed, and training goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from fpe_lightning.expansion.by_shape import Way, way_of, ways_of
from fpe_lightning.expansion.checks import check_unwrapped, check_whole
from fpe_lightning.expansion.compact import fits_compact, put_in_place
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.layout_choice import choose_storage
from fpe_lightning.expansion.optimizer import as_optimizers, follow_states
from fpe_lightning.expansion.prune import settle
from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.expansion.split_site import make_global_room, split_site
from fpe_lightning.partitions.builtin import Groups, Partition
from fpe_lightning.pruning.discriminant import BudgetRule
from fpe_lightning.pruning.magnitude import GLOBAL
from fpe_lightning.sites.select import Alpha, Sites, check_alpha, select_sites, sites_of
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.autotune import choose_fastest
from fpe_lightning.sparse.convert import store, stored_masked
from fpe_lightning.sparse.exchange import exchange_parameters
from fpe_lightning.sparse.layout import LAYOUTS
from fpe_lightning.sparse.model_masks import count_nonzeros


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
            :mod:`fpe_lightning.partitions.builtin`). ``"by_shape"`` splits large linear layers into blocks that are
            stored and computed at the size of their non-zeros, and all others by the paper's rule; it decides on
            budget and layout too (see :mod:`fpe_lightning.expansion.by_shape`). None stands for it, and for
            ``"random"`` where ``groups``, a ``budget`` or a ``layout`` other than ``"auto"`` is given.
        groups: For ``"clause"``: lists of input indices, one a clause.
        sites: Names or globs of the sites to split, sites from ``find_sites``, or None for all.
        budget: Which weights make room: ``"total"`` (the paper's rule, and what None stands for beside a partition),
            ``"incoming"`` or ``"outgoing"`` (single weights of each site), ``"global"`` (incoming weights of all sites
            together, which suits deep networks; see :mod:`fpe_lightning.pruning.magnitude`),
            ``"columns"`` or ``"blocks"`` (whole ones; see :mod:`fpe_lightning.pruning.columns`), or a rule such as
            :class:`~fpe_lightning.pruning.discriminant.DiscriminantRefit`.
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
        counts, reports = [], []
        for site, factor in chosen:
            counts.append(split_site(draft, site, factor, ways[site.name], seed, site.name in compact))
            reports.append(counts[-1].report(draft))  # before a later site takes from weights that both touch
        if together := [(site, factor) for site, factor in chosen if ways[site.name].budget == GLOBAL]:
            make_global_room(draft, together)
            reports = [each.report(draft) for each in counts]
        if change := draft.change():
            raise ValueError(
                f"Splitting {', '.join(site.name for site, _ in chosen)} together would change the number of non-zeros "
                f"by {change}, as two of them share a weight in a way that is not handled; leave one of them out."
            )
        states = follow_states(draft, optimizers, optimizer_state)
        storages = choose_storage(draft, [site for site, _ in chosen], ways, states)
        exchange_parameters(optimizers, draft.commit(models[1:]), states)
    apart = [tensor for tensor in draft.tensors.values() if tensor.apart]
    del draft, states  # and with them all that was widened, before the largest tensors are made
    choices = {}
    if layout == "auto":
        reads = {owner: shape for site, _ in chosen for owner, shape in site.reads.items()}
        choices = choose_fastest(model, storages, reads)
        storages = {
            module: [s for s in found if s.layout == choices[module].layout] for module, found in storages.items()
        }
    for each, (module, found) in itertools.product(models, storages.items()):
        for storage in found:
            store(each.get_submodule(module), storage.layout, storage.structure, optimizers)
    put_in_place(apart, models, optimizers, optimizer_state)
    if isinstance(budget, BudgetRule):
        for each, (site, _) in itertools.product(models, chosen):
            settle(each, site, budget)
    after = count_nonzeros(model)
    assert after == before, f"the budget was not kept: {before} non-zeros before, {after} after"
    return ExpansionReport(before, after, tuple(reports), {name: str(choice) for name, choice in choices.items()})


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
        layout = ways[site.name].layout
        if layout in LAYOUTS and (reason := LAYOUTS.get(layout).cannot_split(alpha)):
            raise ValueError(f'layout="{layout}" was asked for {site.name}. {reason}')
