"""Which weights of a split are stored in blocks or in 2:4 form, and with which structure."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft, DraftTensor
from fpe_lightning.expansion.optimizer import States
from fpe_lightning.sparse.autotune import MOST_BLOCKS, Storage
from fpe_lightning.sparse.grouped.blocks import count_blocks, find_blocks
from fpe_lightning.sparse.grouped.layers import cannot_group
from fpe_lightning.sparse.semi_structured.kernels import no_kernel
from fpe_lightning.sparse.semi_structured.layers import cannot_semi_structure

log = logging.getLogger(__name__)

SEMI_STRUCTURED = "semi_structured"


def choose_storage(
    draft: Draft, splits: Sequence[SiteExpansion], states: States
) -> tuple[dict[str, list[Storage]], dict[str, list[Storage]]]:
    """Decide how each widened weight is stored, before anything is put in place.

    A producer's weight is stored as its site asks. All other weights take a layout that some site asks for, if they
    can. ``"auto"`` times every layout that can hold a weight.

    Args:
        draft: The expansion, worked out and not yet committed.
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
        layouts = {each.layout for each in (splits if split is None else [split])}
        found = timed if "auto" in layouts else fixed
        for form in ("grouped", SEMI_STRUCTURED):
            if not layouts & {form, "auto"}:
                continue
            storage, reason = _storage(draft, tensor, form, states)
            if form == "grouped" and storage is not None and tensor.owner not in called:
                storage, reason = None, "the model does not call its layer with an input, so something else reads it"
            if storage is not None:
                found.setdefault(tensor.owner, []).append(storage)
            elif split is not None:
                what = "in blocks" if form == "grouped" else "in 2:4 form"
                why = f"`{name}` cannot be stored {what}: {reason}."
                if split.layout == form and split.strict:
                    raise ValueError(f'layout="{form}" was asked for {split.site.name}, but {why}')
                log.info('layout="%s" leaves out "%s" for %s: %s', split.layout, form, split.site.name, why)
    return fixed, timed


def _storage(draft: Draft, tensor: DraftTensor, layout: str, states: States) -> tuple[Storage | None, str | None]:
    """How a weight is stored in a layout, or None and why it cannot be."""
    if layout == "grouped":
        structure = _structure(draft, tensor, states)
        return (None, structure) if isinstance(structure, str) else (structure, None)
    reason = _not_semi_structured(draft, tensor)
    return (SEMI_STRUCTURED, None) if reason is None else (None, reason)


def _not_semi_structured(draft: Draft, tensor: DraftTensor) -> str | None:
    """Why a weight cannot be stored in 2:4 form; None where it can."""
    if reason := _no_weight(draft, tensor):
        return reason
    if tensor.mask is None:
        return "it is dense"
    device = tensor.original.device
    if asks_a_gpu(device) and (reason := no_kernel(device)):
        return f"this GPU cannot run the kernels: {reason}"
    reason = cannot_semi_structure(draft.model.get_submodule(tensor.owner), tensor.mask)
    if reason and "2:4 allows" in reason:
        reason += '; use partition="semi_structured"'
    return reason


def asks_a_gpu(device: torch.device) -> bool:
    """Whether a device has to have kernels; a CPU may be where a model is made and not where it is trained.

    Example:
        >>> asks_a_gpu(torch.device("cpu"))
        False
    """
    return device.type == "cuda"


def _no_weight(draft: Draft, tensor: DraftTensor) -> str | None:
    if tensor.name != "weight" or not isinstance(tensor.original, nn.Parameter):
        return "it is no weight of a layer"
    return _read_elsewhere(draft.model, tensor.owner)


def _structure(draft: Draft, tensor: DraftTensor, states: States) -> Tensor | str:
    """The structure of a weight, or why it has none."""
    module = draft.model.get_submodule(tensor.owner)
    reason = _no_weight(draft, tensor) or cannot_group(module)
    if reason:
        return reason
    if tensor.mask is None:
        return "it is dense"
    for optimizer, parameter, state in states:
        if parameter is tensor.original and any(_is_factored(value, tensor.value) for value in state.values()):
            return f"{type(optimizer).__name__} keeps state of rows and columns, which blocks do not have"
    candidates = [find_blocks(tensor.mask.flatten(2).any(2) if tensor.mask.dim() > 2 else tensor.mask)]
    if tensor.block and len(tensor.mask) % tensor.block == 0:
        rows = tensor.mask.view(len(tensor.mask) // tensor.block, tensor.block, tensor.mask.shape[1], -1)
        candidates.append(rows.any(3).any(1))
    few = [c for c in candidates if len(c) <= MOST_BLOCKS and 2 * len(c) <= len(tensor.mask)]
    if not few:
        return (
            f"its {len(tensor.mask)} neurons have {len(candidates[-1])} different sets of inputs; use a partition that "
            'neurons share, such as partition="shared:4" or "contiguous:4", or layout="masked" where earlier splits '
            "left few inputs to each"
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        few = [candidate for candidate in few if bool(candidate.any(1).all())]
        if not few:
            return "some block of channels reads no input at all"
    best = min(few, key=lambda inputs: count_blocks(inputs, len(tensor.value)))
    if count_blocks(best, len(tensor.value)) == len(tensor.value) * tensor.value.shape[1]:
        return "every block reads every input"
    return best


def _is_factored(value: object, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != weight.shape


def _read_elsewhere(model: nn.Module, owner: str) -> str | None:
    """Torch's own encoder layer hands the weights of its children to a fused kernel when it evaluates."""
    parent = model.get_submodule(owner.rpartition(".")[0]) if owner else None
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads the weight without calling the layer that owns it"
    return None
