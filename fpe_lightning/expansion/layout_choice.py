"""Which weights of a split are stored in a layout other than masked, and with which structure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fpe_lightning.expansion.by_shape import Way
from fpe_lightning.expansion.draft import Draft, DraftTensor
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.exchange import States
from fpe_lightning.sparse.layout import LAYOUTS, Layout, Storage, Structure, read_by_parent

log = logging.getLogger(__name__)


def choose_storage(
    draft: Draft, sites: Sequence[Site], ways: Mapping[str, Way], states: States
) -> dict[str, list[Storage]]:
    """Decide how each widened weight is stored, before anything is put in place.

    Args:
        draft: The expansion, worked out and not yet committed.
        sites: The sites that are split.
        ways: How, by their names. A layout such as ``"grouped"`` is required of every producer, and used elsewhere
            where it can be. ``"auto"`` takes every layout that can hold a weight, to be timed. ``"masked"`` leaves
            every weight masked.
        states: Optimizer state that follows its weights.

    Returns:
        How each weight can be stored that need not stay masked, by the name of its module.

    Raises:
        ValueError: If the weight of a producer cannot be stored as asked.
    """
    producers = {producer.parameter: site for site in sites for producer in site.producers}
    called = {owner for site in sites for owner in site.reads}
    found: dict[str, list[Storage]] = {}
    for name, tensor in draft.tensors.items():
        if tensor.apart:  # it is in blocks already
            continue
        site = producers.get(name)
        way = None if site is None else ways[site.name]
        wanted = {each.layout for each in (ways.values() if way is None else [way])}
        for form in LAYOUTS:
            if form == "masked" or not wanted & {form, "auto"}:
                continue
            layout = LAYOUTS.get(form)
            structure = _storage(draft, tensor, layout, states)
            if layout.packs and tensor.owner not in called and not isinstance(structure, str):
                structure = "the model does not call its layer with an input, so something else reads it"
            if not isinstance(structure, str):
                found.setdefault(tensor.owner, []).append(Storage(form, structure))
            elif site is not None and way is not None:
                why = f"`{name}` cannot be stored {layout.phrase}: {structure}."
                if way.layout == form and way.asked:
                    raise ValueError(f'layout="{form}" was asked for {site.name}, but {why}')
                log.info('layout="%s" leaves out "%s" for %s: %s', way.layout, form, site.name, why)
    return found


def _storage(draft: Draft, tensor: DraftTensor, layout: Layout, states: States) -> Structure | str:
    """The structure of a widened weight in a layout, or why it cannot be stored so, in a few words."""
    if tensor.name != "weight" or not isinstance(tensor.original, nn.Parameter):
        return "it is no weight of a layer"
    if reason := read_by_parent(draft.model, tensor.owner):
        return reason
    module = draft.model.get_submodule(tensor.owner)
    if reason := layout.cannot_hold(module):
        return reason
    if tensor.mask is None:
        return "it is dense"
    for optimizer, parameter, state in states if layout.packs else ():
        if parameter is tensor.original and any(_is_factored(value, tensor.value) for value in state.values()):
            return f"{type(optimizer).__name__} keeps state of rows and columns, which a packed weight does not have"
    return layout.fit(module, tensor.mask, tensor.block)


def _is_factored(value: object, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != weight.shape
