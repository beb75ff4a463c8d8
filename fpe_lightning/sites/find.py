"""Find every hidden width of a model that can be widened, whatever the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fpe_lightning.arguments import check_module
from fpe_lightning.sites.attributes import layer_attributes
from fpe_lightning.sites.candidates import Refusal, candidates_of
from fpe_lightning.sites.found import Found
from fpe_lightning.sites.single import in_order, single_unit_sites
from fpe_lightning.sites.site import Site
from fpe_lightning.sites.tracing.blocks import Blocks
from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.forward import At, Inputs, trace
from fpe_lightning.sites.tracing.sandbox import Tensors, modules_by_name, owners_of, state_of
from fpe_lightning.sites.tracing.units import Units, resolve
from fpe_lightning.sites.trial import Run, Trials, sentence_of
from fpe_lightning.sparse.convert import stored_masked

__all__ = ["Refusal", "find_sites"]

STREAM = "a residual stream: several weights add to it"


@overload
def find_sites(model: nn.Module, example_inputs: Any, *, streams: bool = False) -> list[Site]: ...
@overload
def find_sites(
    model: nn.Module, example_inputs: Any, *, explain: Literal[False], streams: bool = False
) -> list[Site]: ...
@overload
def find_sites(
    model: nn.Module, example_inputs: Any, *, explain: Literal[True], streams: bool = False
) -> tuple[list[Site], list[Refusal]]: ...
def find_sites(
    model: nn.Module, example_inputs: Any, *, explain: bool = False, streams: bool = False
) -> list[Site] | tuple[list[Site], list[Refusal]]:
    """Find the hidden widths of a model that can be widened without touching inputs, outputs or a residual stream.

    Every entry of every parameter axis is followed through the operators of a forward pass, in training and in
    evaluation mode. Entries that meet (a row of a weight, the bias that is added to it, the column that reads it) are
    one unit. A width is refused unless a rule vouches for every operator on its way, and unless the model runs with
    the width enlarged. Only shapes are computed, unless the forward's control flow reads values. Forward hooks do
    not run.

    Args:
        model: Any module. It is as before afterwards, also if this raises.
        example_inputs: The inputs of the forward: a tensor, a tuple of positional arguments or a dict of keyword
            arguments. Shapes and dtypes matter, and values where the forward's control flow reads them.
        explain: Whether to say why the other widths are refused.
        streams: Whether to look for residual streams too.

    Returns:
        Sites in the order of the forward; with ``explain`` also the refusals.

    Raises:
        TypeError: If ``example_inputs`` is of another type.
        ValueError: If the model has lazy parameters, or does not run on the example inputs.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> [(site.name, site.width, site.fan_in) for site in find_sites(net, torch.zeros(2, 8))]
        [('0', 16, 8)]
        >>> sites, refusals = find_sites(net, torch.zeros(2, 8), explain=True)
        >>> print(*refusals)
        2: it reaches an output of the model
    """
    check_plain(model)
    with stored_masked(model):  # packed weights have no axes of neurons and inputs to follow
        found = search_sites(model, example_inputs, streams=streams)
    return (list(found.sites), list(found.refusals)) if explain else list(found.sites)


def search_sites(model: nn.Module, example_inputs: Any, *, streams: bool = False) -> Found:
    """Find the sites of a model whose layers are all dense or masked, and say why other widths are refused.

    Args:
        model: See :func:`find_sites`; no layer may be stored in another layout.
        example_inputs: See :func:`find_sites`.
        streams: See :func:`find_sites`.

    Raises:
        TypeError: See :func:`find_sites`.
        ValueError: See :func:`find_sites`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> [site.name for site in search_sites(net, torch.zeros(2, 8)).sites]
        ['0']
    """
    inputs = Inputs.of(example_inputs)
    check_plain(model)
    facts, runs, refusals, stand_ins, blocks = _traces(model, inputs)
    units = resolve(facts)
    owners = owners_of(model)
    modules = modules_by_name(model)
    candidates, refused = candidates_of(units, state_of(model), _shared(owners))
    candidates = layer_attributes(candidates, units, modules, owners)
    wanted = [c for c in candidates if streams or c.site.kind != "stream"]
    trials = Trials(model, runs, units, stand_ins, blocks)
    accepted = trials.accept(wanted)
    sites = [candidate.site for candidate in accepted]
    single = single_unit_sites(trials, _shared(owners))
    if single and not isinstance(trials.facts_at([(site, 2) for site in (*sites, *single)]), Exception):
        sites = in_order([*sites, *single], list(facts.input_shapes))
    sites = [_with_shapes(site, facts.input_shapes) for site in sites]
    refusals += refused + [Refusal(c.site.name, STREAM) for c in candidates if c not in wanted] + trials.refusals
    open_ = {candidate.group for candidate in candidates} & {candidate.group for candidate in accepted}
    frozen = _used(units, without=open_) | _single_axes(model, facts)
    frozen -= {(axis.parameter, axis.dim) for site in single for axis in site.axes()}
    return Found(tuple(sites), tuple(refusals), frozenset(frozen))


def _used(units: Units, without: set[int]) -> set[tuple[str, int]]:
    """The parameter axes that the forward uses, without those whose entries all belong to some groups."""
    open_ = np.zeros(len(units.added), dtype=bool)
    open_[list(without)] = True
    return {
        (span.parameter, span.dim)
        for span in units.facts.spans
        if units.role_of(span) and not open_[units.groups_of(span)].all()
    }


def _single_axes(model: nn.Module, facts: Facts) -> set[tuple[str, int]]:
    """The axes of one entry of the weights whose modules were called; they carry no labels."""
    return {
        (name, dim)
        for name, tensor in state_of(model).items()
        if name.rpartition(".")[0] in facts.input_shapes
        for dim, size in enumerate(tensor.shape[:2])
        if size == 1
    }


def _with_shapes(site: Site, shapes: Mapping[str, tuple[int, ...]]) -> Site:
    """Note the input shape of each module that owns a producer or a consumer."""
    owners = {axis.parameter.rpartition(".")[0] for axis in (*site.producers, *site.consumers)}
    return replace(site, input_shapes={owner: shapes[owner] for owner in sorted(owners) if owner in shapes})


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose parameters cannot be exchanged: parts that TorchScript compiled, and lazy ones.

    Raises:
        ValueError: Naming the part and what to do.

    Example:
        >>> check_plain(nn.Linear(2, 2))
    """
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"`{name}` is" if name else "The model is"
            raise ValueError(
                f"{part} a module that was traced or scripted by torch.jit, whose parameters cannot be exchanged: "
                "split the Python module before it is traced or scripted."
            )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"The shapes of all parameters are needed, but {name} is not initialised yet: "
                "run one forward pass of the lazy module first."
            )


def _traces(model: nn.Module, inputs: Inputs) -> tuple[Facts, list[Run], list[Refusal], dict[bool, Tensors], Blocks]:
    """Trace both modes; fall back from fake to real tensors, and in training to two examples."""
    attempts = [
        [
            Run(given, training, fake)
            for fake in (True, False)
            for given in ((inputs, inputs.doubled()) if training else (inputs,))
        ]
        for training in (False, True)
    ]
    facts, runs, refusals, errors = Facts(), [], [], []
    stand_ins, blocks = {fake: Tensors(fake) for fake in (True, False)}, Blocks(model)
    for options in attempts:
        for run in options:
            try:
                at = At(training=run.training, tensors=stand_ins[run.fake], known=facts)
                facts.absorb(trace(model, run.inputs, at, blocks=blocks if run.fake else None))
            except Exception as error:  # a user's forward may raise anything
                failure = error
                continue
            runs.append(run)
            break
        else:
            errors.append(failure)
            mode = "training" if options[0].training else "evaluation"
            refusals.append(Refusal("", f"not traced in {mode} mode, where the forward raises {sentence_of(failure)}"))
    if not runs:
        raise ValueError(
            f"find_sites runs the model on the example inputs, but the forward raises {sentence_of(errors[0])}: "
            "pass inputs of the shapes and dtypes that the model takes."
        ) from errors[0]
    return facts, runs, refusals, stand_ins, blocks


def _shared(owners: Mapping[str, list[tuple[str, str]]]) -> dict[str, str]:
    """Parameters that several modules hold: a wider one in one module would leave the others narrow."""
    return {
        name: "tied weights: " + " and ".join(f"{module}.{attribute}" for module, attribute in held) + " are one tensor"
        for name, held in owners.items()
        if len(held) > 1
    }
