"""Which weights of a split are stored in a layout other than masked, and with which structure."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, nn

from fpe_lightning.expansion.checks import read_by_parent
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.sparse.exchange import States
from fpe_lightning.sparse.folded.layout import pays
from fpe_lightning.sparse.layout import LAYOUTS, Layout, Storage, Structure

log = logging.getLogger(__name__)


def choose_storage(
    draft: Draft, splits: Sequence[SiteExpansion], states: States
) -> tuple[dict[str, list[Storage]], dict[str, list[Storage]]]:
    """Decide how each widened weight is stored, before anything is put in place.

    A producer's weight is stored as its site asks. All other weights take a layout that some site asks for, if they
    can. ``"by_shape"`` folds a weight where that pays and can be, and ``"auto"`` times every layout that can hold it.

    Args:
        draft: The expansion, before its commit.
        splits: The sites, each with its expansion.
        states: Optimizer state that follows its weights.

    Returns:
        How each weight is stored that does not stay masked, and which ways to store a weight have to be timed; both by
        the name of its module.

    Raises:
        ValueError: If the weight of a producer cannot be stored as asked.
    """
    producers = {producer.parameter: split for split in splits for producer in split.site.producers}
    called = {owner for split in splits for owner in split.site.input_shapes}
    fixed: dict[str, list[Storage]] = {}
    timed: dict[str, list[Storage]] = {}
    for name, tensor in draft.tensors.items():
        if tensor.separate:  # it is in blocks already
            continue
        split = producers.get(name)
        wanted = {each.layout for each in (splits if split is None else [split])}
        found = timed if "auto" in wanted else fixed
        forms = [form for form in LAYOUTS if form != "masked" and wanted & {form, "auto"}]
        if "by_shape" in wanted and "folded" not in forms and pays(tensor.original.shape):
            forms.append("folded")
        for form in forms:
            if tensor.owner in fixed:
                break
            layout = LAYOUTS.get(form)
            structure = _storage(draft, tensor, layout, states)
            if layout.packs and tensor.owner not in called and not isinstance(structure, str):
                structure = "the model does not call its layer with an input, so something else reads it"
            if not isinstance(structure, str):
                found.setdefault(tensor.owner, []).append(Storage(form, structure))
            elif split is not None:
                why = f"`{name}` cannot be stored {layout.phrase}: {structure}."
                if split.layout == form and split.strict:
                    raise ValueError(f'layout="{form}" was asked for {split.site.name}, but {why}')
                log.info('layout="%s" leaves out "%s" for %s: %s', split.layout, form, split.site.name, why)
    return fixed, timed


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
