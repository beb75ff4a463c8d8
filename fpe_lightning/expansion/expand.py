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
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.expansion.budget import BUDGETS, STRUCTURED, count_nonzeros, remove_smallest
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.hand_out import common_group, draw_shares, hand_out
from fpe_lightning.expansion.optimizer import as_optimizers, follow_states, replace_parameters
from fpe_lightning.expansion.order import block_order
from fpe_lightning.expansion.partition import Groups, Partition, resolve_partition
from fpe_lightning.expansion.report import ExpansionReport, SiteReport
from fpe_lightning.expansion.select import Alpha, Sites, check_alpha, select_sites, sites_of
from fpe_lightning.expansion.sites import Axis, Site
from fpe_lightning.expansion.storage_choice import choose_storage
from fpe_lightning.expansion.structured import make_structured_room
from fpe_lightning.sparse.storage import group, stored_masked

LAYOUTS = ("auto", "masked", "grouped")


class ExpansionWarning(UserWarning):
    """An expansion that is possible but unlikely to help."""


def expand(
    model: nn.Module,
    alpha: Alpha = 2,
    partition: str | Partition = "random",
    groups: Groups | None = None,
    sites: Sites = None,
    budget: str = "total",
    seed: int = 0,
    layout: str = "auto",
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
        model: Any module. Parameters of split layers are replaced by wider ones.
        alpha: Children of each neuron, at least 2; or a mapping from site names (or globs) to it.
        partition: Which child inherits which input: ``"random"``, ``"shared"``, ``"shared:<groups of neurons>"``,
            ``"contiguous"``, ``"contiguous:<groups of neurons>"``, ``"feature"``, ``"clause"``,
            ``"semi_structured"``, ``"overlapping"``, or a callable (see :mod:`fpe_lightning.expansion.partition`).
        groups: For ``"clause"``: lists of input indices, one a clause.
        sites: Names or globs of the sites to split, sites from ``find_sites``, or None for all.
        budget: Which weights make room: ``"total"``, ``"incoming"`` or ``"outgoing"`` (single weights; see
            :mod:`fpe_lightning.expansion.budget`), ``"columns"`` or ``"blocks"`` (whole ones; see
            :mod:`fpe_lightning.expansion.room`).
        seed: Every draw depends on it, on the site's name and its width, and on nothing else.
        layout: How the result is stored: ``"masked"`` (any structure), ``"grouped"`` (dense blocks at the size of the
            non-zeros, for partitions that neurons share; children that share one then stand together, see
            :mod:`fpe_lightning.expansion.order`), or ``"auto"``, the one that holds whatever comes: ``"masked"``.
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
            to make room for the copies of outgoing weights, or one of ``copies`` has another structure.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> report = expand(model, alpha=2, example_inputs=torch.randn(1, 64))
        >>> model[0].weight.shape, report.nonzeros_before, report.nonzeros_after
        (torch.Size([16, 64]), 547, 547)
    """
    rule = resolve_partition(partition, groups)
    if budget not in BUDGETS:
        raise ValueError(f"Unknown budget {budget!r}; known: {', '.join(BUDGETS)}.")
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    optimizers = as_optimizers(optimizer)
    models = [model, *copies]
    before = count_nonzeros(model)
    with ExitStack() as masked:
        for each in models:
            masked.enter_context(stored_masked(each, optimizers))
        chosen = _choose(model, alpha, sites, example_inputs)
        draft = Draft(model)
        reports = tuple(_split(draft, site, factor, rule, budget, seed, layout) for site, factor in chosen)
        if change := draft.change():
            raise ValueError(
                f"Splitting {', '.join(site.name for site, _ in chosen)} together would change the number of non-zeros "
                f"by {change}, as two of them share a weight in a way that is not handled; leave one of them out."
            )
        states = follow_states(draft, optimizers, optimizer_state)
        structures = choose_storage(draft, [site for site, _ in chosen], layout, states)
        replace_parameters(optimizers, draft.commit(models[1:]), states)
    for each, (module, inputs) in itertools.product(models, structures.items()):
        group(each.get_submodule(module), inputs, optimizers)
    after = count_nonzeros(model)
    assert after == before, f"the budget was not kept: {before} non-zeros before, {after} after"
    return ExpansionReport(before, after, reports)


def _choose(model: nn.Module, alpha: Alpha, sites: Sites, example_inputs: Any) -> list[tuple[Site, int]]:
    """The sites to split, each with its factor; sites that are already found need no example inputs."""
    given = [site for site in sites or () if isinstance(site, Site)]
    if given:
        return select_sites(given, alpha)
    check_alpha(alpha)
    names = cast("str | Sequence[str] | None", sites)
    return select_sites(sites_of(model, example_inputs), alpha, names)


def _split(
    draft: Draft, site: Site, alpha: int, partition: Partition, budget: str, seed: int, layout: str
) -> SiteReport:
    """Work out the split of one site."""
    producers = [producer.parameter for producer in site.producers]
    consumers = [consumer.parameter for consumer in site.consumers]
    everything = list(dict.fromkeys([*producers, *consumers, *(axis.parameter for axis in site.values)]))
    for parameter in everything:
        if not bool(torch.isfinite(draft[parameter].value).all()):
            raise ValueError(f"`{parameter}` holds NaN or infinity: the run has diverged, so {site.name} is not split.")
    before = sum(draft.count(parameter) for parameter in everything)
    incoming_before = sum(draft.count(parameter) for parameter in producers)
    outgoing_before = sum(draft.count(parameter) for parameter in consumers)

    shares = draw_shares(draft, site, alpha, partition, site_generator(seed, site))
    together = common_group(shares)
    asked = site
    if layout == "grouped":
        site = block_order(draft.model, site, together)
    hand_out(draft, site, alpha, shares)
    for axis in (*site.consumers, *site.values):
        draft.widen(axis, alpha)
    for attribute in site.attributes:
        draft.grow(attribute, alpha)

    excess = sum(draft.count(parameter) for parameter in everything) - before
    if budget != "blocks":  # where outgoing weights are handed out, they cost the incoming ones nothing
        _warn_if_costly(site, alpha, excess, incoming_before)
    if budget in STRUCTURED:
        make_structured_room(draft, site, alpha, together, together if site is asked else 1, budget, before)
    else:
        _make_room(draft, site, alpha, _candidates(site, budget), excess)
    incoming_after = sum(draft.count(parameter) for parameter in producers)
    outgoing_after = sum(draft.count(parameter) for parameter in consumers)
    return SiteReport(
        name=site.name,
        alpha=alpha,
        width_before=site.width,
        width_after=alpha * site.width,
        fan_in_before=incoming_before / site.width,
        fan_in_after=incoming_after / (alpha * site.width),
        nonzeros=before,
        removed_incoming=incoming_before - incoming_after,
        removed_outgoing=alpha * outgoing_before - outgoing_after,
    )


def _candidates(site: Site, budget: str) -> list[Axis]:
    """The axes whose weights make room; an axis that several roles share counts once."""
    axes = {"total": [*site.producers, *site.consumers], "incoming": site.producers, "outgoing": site.consumers}[budget]
    return list({(axis.parameter, axis.dim, axis.start): axis for axis in axes}.values())


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


def _make_room(draft: Draft, site: Site, alpha: int, candidates: Sequence[Axis], excess: int) -> None:
    """Remove as many of the site's own weights as the copies added."""
    stretches = [draft.mask(axis.parameter) & _stretch(draft, axis, alpha) for axis in candidates]
    try:
        kept = remove_smallest([draft[axis.parameter].value for axis in candidates], stretches, excess)
    except ValueError as error:
        names = " and ".join(axis.parameter for axis in candidates)
        raise ValueError(
            f"Splitting {site.name} by alpha={alpha} adds {excess} copies of outgoing weights, biases and "
            f"norms, and as many weights of {names} have to go. {error} Use a smaller alpha, another "
            "budget, or leave this site out."
        ) from error
    for axis, before, after in zip(candidates, stretches, kept, strict=True):
        draft.restrict(axis.parameter, ~(before & ~after))


def _stretch(draft: Draft, axis: Axis, alpha: int) -> Tensor:
    """The entries of a widened tensor that belong to the site, to be broadcast over its other axes."""
    value = draft[axis.parameter].value
    inside = torch.zeros(value.shape[axis.dim], dtype=torch.bool, device=value.device)
    inside.narrow(0, draft.start(axis), alpha * axis.length).fill_(True)
    return inside.view([-1 if dim == axis.dim else 1 for dim in range(value.dim())])


def _warn_if_costly(site: Site, alpha: int, excess: int, incoming: int) -> None:
    """METHOD: where copies eat a large share of what the neurons read, a split loses accuracy."""
    if 2 * excess > incoming:
        warnings.warn(
            f"Splitting {site.name} by alpha={alpha} adds {excess} copies to {incoming} incoming weights "
            f"({excess / incoming:.0%}), and as many weights have to go. With few inputs and many outputs a split "
            "tends to lose accuracy; consider a smaller alpha.",
            ExpansionWarning,
            stacklevel=5,
        )
