"""The one verb: split the neurons of a model in place, at a fixed number of non-zero parameters.

The steps of the paper's definition, for each site (a dense layer pair ``W1``, ``W2`` in the simplest case):

1. every neuron becomes ``alpha`` adjacent children, and each of its incoming weights goes to one of them;
2. outgoing weights, biases and norm entries are copied;
3. the weights of smallest magnitude are pruned until the number of non-zeros is the former one;
4. the masks are fixed, and training goes on.

All of this happens in a draft. The model changes after the last step that can be refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

from torch import nn
from torch.optim import Optimizer

from fpe_lightning.arguments import check_strings
from fpe_lightning.expansion.auto import Auto
from fpe_lightning.expansion.by_shape import ByShape
from fpe_lightning.expansion.checks import check_unwrapped, check_whole
from fpe_lightning.expansion.compact import fits_compact, put_in_place
from fpe_lightning.expansion.config import AnyExpansion, BaseExpansion, Data, SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.folded import fits_folded
from fpe_lightning.expansion.layout_choice import choose_storage
from fpe_lightning.expansion.optimizer import follow_states
from fpe_lightning.expansion.optimizer_parts import listed
from fpe_lightning.expansion.parts import part_of, resolve_averages
from fpe_lightning.expansion.prune import prune_together
from fpe_lightning.expansion.prune_by_rule import finalized_values
from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.expansion.shadows import shadows_of
from fpe_lightning.expansion.split_site import split_site
from fpe_lightning.expansion.students import has_split, sites_of_students
from fpe_lightning.expansion.teachers import Teacher, find_teachers
from fpe_lightning.expansion.wrappers import check_copies, check_holds, holders_of
from fpe_lightning.sites import Site
from fpe_lightning.sites.find import check_plain
from fpe_lightning.sites.select import Names, select_sites, sites_of, value_of
from fpe_lightning.sites.sensible import choose_sites
from fpe_lightning.sparse.autotune import choose_fastest
from fpe_lightning.sparse.convert import store, stored_masked
from fpe_lightning.sparse.exchange import exchange_parameters
from fpe_lightning.sparse.model_masks import count_allowed, count_nonzeros


def expand(
    model: nn.Module,
    expansion: AnyExpansion | None = None,
    *,
    alpha: int | Literal["auto"] | None = None,
    seed: int | None = None,
    example_inputs: Any = None,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    sites: Names | Sequence[Site] | None = None,
    exclude: Names | None = None,
    averages: Iterable[Any] = (),
    data: Data | None = None,
) -> ExpansionReport:
    """Split the neurons of a model in place, and keep its number of non-zero parameters (Fixed Parameter Expansion).

    The function that the model computes changes, as ``relu(a + b)`` is not ``relu(a) + relu(b)``; training on
    recovers it. The order of parameters, and everything that is not split, stay as they are. If anything is refused,
    model, optimizers and averages are as they were.

    Args:
        model: Any module. Parameters of split layers are replaced by wider ones. A wrapper that holds the old ones,
            such as ``DistributedDataParallel``, has to be made after the split.
        expansion: How to expand (see :mod:`fpe_lightning.expansion.config`), such as ``fpe.Paper(alpha=4)``; or a
            mapping from names or globs of sites to such objects, of which the first that matches a site counts, and
            sites that none matches are left out. None stands for ``fpe.ByShape()``.
        alpha: Children of each neuron: short for ``fpe.ByShape(alpha=alpha)``, in place of ``expansion``. ``"auto"`` is
            short for ``fpe.Auto()``: as many as suit each site, or none.
        seed: Short for ``fpe.ByShape(seed=seed)``, in place of ``expansion``.
        example_inputs: The inputs of the model's forward: a tensor, a tuple of arguments or a dict of keyword
            arguments. They are needed to find the sites, unless ``sites`` holds them or the model has an
            ``example_input_array``.
        optimizer: One or several optimizers that hold the model's parameters; they are kept valid.
        sites: Names or globs of the sites to split, sites from ``find_sites``, or None for all.
        exclude: Names or globs of sites that are left as they are.
        averages: Modules of the structure of the model or of a part of it, such as averages of the weights (EMA), that
            are split with it: with its masks, and their own values. Names or globs stand for parts of the model. An
            object with tensors in a list in the order of the parameters, or in a dict by their names, such as the
            ``EMAModel`` of diffusers, is an average too. Parts
            that copy another part, as the teachers of BYOL, MoCo and DINO or a DQN target do, are found without being
            named where nothing trains them and their weights resemble those that they copy.
        data: Training samples ``(n, inputs)`` as the split layer reads them, and their class numbers ``(n,)``, for
            partitions and pruning rules that need them.

    Returns:
        Widths, fan-ins and non-zeros before and after.

    Raises:
        TypeError: If ``optimizer`` or ``expansion`` is of another type.
        ValueError: If an argument is bad, no site can be split, weights hold NaN or infinity, too little is left
            to prune for the copies of outgoing weights, one of ``averages`` has another structure, an optimizer holds
            none of the model's parameters, or the model is wrapped by DDP or sharded.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> report = expand(model, alpha=2, example_inputs=torch.randn(1, 64))
        >>> model[0].weight.shape, report.nonzeros_before, report.nonzeros_after
        (torch.Size([16, 64]), 547, 547)
    """
    expansion = resolve_expansion(expansion, alpha, seed)
    check_plain(model)
    check_unwrapped(model)
    trained_by = listed(optimizer)
    check_holds(model, trained_by)
    optimizers = holders_of(trained_by)
    given, others = resolve_averages(model, averages)
    shadows = shadows_of(others, model)
    parameters = dict(model.named_parameters()) if shadows else {}
    before = count_allowed(model)  # masked entries that are not zero become zero
    with ExitStack() as masked:
        for each in (model, *given, *(shadow.module for shadow in shadows)):
            masked.enter_context(stored_masked(each, optimizers))
        outside = [Teacher("", shadow.student, shadow.module) for shadow in shadows]
        teachers = find_teachers(model, trained_by, given, outside=outside)
        models = [model, *(teacher.mirror() for teacher in teachers)]
        splits = choose_splits(model, expansion, sites, exclude, example_inputs, data, teachers)
        check_whole(model, [split.site for split in splits])
        # Steps 1 to 3, in a draft.
        draft = Draft(model)
        compact = fits_compact(model, splits, optimizers) | fits_folded(model, splits, optimizers)
        counts, reports = [], []
        for split in splits:
            counts.append(split_site(draft, split, compact))
            reports.append(counts[-1].report(draft))  # before a later site prunes weights that both touch
        if prune_together(draft, splits):
            reports = [each.report(draft) for each in counts]
        if change := draft.change():
            raise ValueError(
                f"Splitting {', '.join(split.site.name for split in splits)} together would change the number of "
                f"non-zeros by {change}, as two of them share a weight in a way that is not handled; leave one of "
                "them out."
            )
        check_copies(trained_by, (tensor.original.shape for tensor in draft.tensors.values()))
        states = follow_states(draft, optimizers, models[1:])
        storages, timed = choose_storage(draft, splits, states)
        draft.check_averages(teachers)
        values = [finalized_values(draft, each, splits) for each in models]
        # Step 4: nothing can be refused from here on.
        exchange_parameters(optimizers, draft.commit(models, values), states)
    separate = [tensor for tensor in draft.tensors.values() if tensor.separate]
    del draft, states, values  # with all that was widened, before the largest tensors are made
    choices = choose_fastest(model, timed, _input_shapes(splits)) if timed else {}
    for name, choice in choices.items():
        storages[name] = [storage for storage in timed[name] if storage.layout == choice.layout]
    for each, (name, found) in itertools.product(models, storages.items()):
        module = part_of(each, name)
        for storage in found:
            if module is not None:
                store(module, storage.layout, storage.structure, optimizers)
    put_in_place(separate, models, optimizers)
    for shadow in shadows:
        shadow.write_back(parameters, dict(model.named_parameters()))
    after = count_nonzeros(model)
    if after != before:
        raise RuntimeError(
            f"The split changed the number of non-zeros from {before} to {after}; please report this with the model."
        )
    return ExpansionReport(
        before,
        after,
        tuple(reports),
        {name: str(choice) for name, choice in choices.items()},
        {teacher.name: teacher.student for teacher in teachers if teacher.name and has_split(teacher, splits)},
    )


def resolve_expansion(
    expansion: AnyExpansion | None = None, alpha: int | Literal["auto"] | None = None, seed: int | None = None
) -> AnyExpansion:
    """The expansion that the arguments of ``expand`` and of ``ExpansionCallback`` stand for.

    Raises:
        TypeError: If the expansion is of another type.
        ValueError: If both an expansion and ``alpha`` or ``seed`` are given, or a mapping is empty.

    Example:
        >>> resolve_expansion(alpha=4)
        ByShape(alpha=4, optimizer_state='keep', seed=0, layout='by_shape')
    """
    short = {name: value for name, value in (("alpha", alpha), ("seed", seed)) if value is not None}
    if expansion is None and alpha == "auto":
        expansion, short = Auto(seed=seed or 0), {}
    if expansion is None:
        expansion, short = ByShape(**short), {}  # type: ignore[arg-type]
    if short:
        given = ", ".join(f"{name}={value!r}" for name, value in short.items())
        raise ValueError(
            f"`{given}` is short for an expansion, and `expansion` is given too: put it into the expansion, as in "
            f"`fpe.Paper({given})`."
        )
    if isinstance(expansion, Mapping):
        if not expansion:
            raise ValueError("The mapping from sites to expansions is empty; name at least one site.")
        several: list[Any] = list(expansion.values())
    else:
        several = [expansion]
    for each in several:
        if not isinstance(each, BaseExpansion):
            raise TypeError(
                f"`expansion` takes an expansion such as `fpe.Paper(alpha=4)`, or a mapping from names of sites to "
                f"them; found {each!r}."
            )
    if isinstance(expansion, BaseExpansion) and expansion.alpha == 1:  # in a mapping it leaves a site as it is
        raise ValueError("`alpha` is the number of children of each neuron, an integer of at least 2; found 1.")
    return expansion


def choose_splits(
    model: nn.Module,
    expansion: AnyExpansion,
    sites: Names | Sequence[Site] | None,
    exclude: Names | None,
    example_inputs: Any,
    data: Data | None,
    teachers: Sequence[Teacher] = (),
) -> list[SiteExpansion]:
    """The sites to split, each with its expansion, in the order in which the model uses them."""
    if not (sites is None or isinstance(sites, Iterable)):
        check_strings("sites", sites)
    given = [] if sites is None or isinstance(sites, str) else [site for site in sites if isinstance(site, Site)]
    mapping = expansion if isinstance(expansion, Mapping) else {"*": expansion}
    if given:
        named = ((site, value_of(site, mapping)) for site in select_sites(given, None, exclude))
        pairs = [(site, each) for site, each in named if each is not None and each.alpha > 1]
    else:
        names = cast("Names | None", sites)
        pairs, _ = choose_sites(model, sites_of(model, example_inputs), mapping, names, exclude)
    pairs, _ = sites_of_students(pairs, teachers, cast("Names", () if given else sites or ()))
    splits: dict[str, SiteExpansion] = {}
    for each in mapping.values():
        own = [site for site, found_for in pairs if found_for is each]
        others = [site for site, found_for in pairs if found_for is not each]
        splits |= {split.site.name: split for split in each.fit(data).of_sites(model, own, others)}
    return [splits[site.name] for site, _ in pairs if site.name in splits]


def _input_shapes(splits: Sequence[SiteExpansion]) -> dict[str, tuple[int, ...]]:
    return {owner: shape for split in splits for owner, shape in split.site.input_shapes.items()}
