"""What each module of a model has to become to hold an incoming ``state_dict``, and making it so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe_lightning.checkpoints.resize import resized
from fpe_lightning.expansion.draft import plain
from fpe_lightning.sparse.grouped.blocks import count_blocks
from fpe_lightning.sparse.grouped.layers import STRUCTURE, cannot_group, set_structure, structure_of
from fpe_lightning.sparse.masked import check_maskable, mask_of, set_mask
from fpe_lightning.sparse.record import RECORD, Record, record_of
from fpe_lightning.sparse.semi_structured.format import not_semi_structured
from fpe_lightning.sparse.semi_structured.layers import MARK, is_semi_structured, set_semi_structured


@dataclass
class Rebuild:
    """What one module has to become."""

    name: str
    module: nn.Module
    tensors: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    attributes: dict[str, Any]
    bits: Tensor | None
    structure: Tensor | None
    semi_structured: bool


def plan_rebuild(
    model: nn.Module, name: str, module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str
) -> Rebuild | None:
    """Compare one module with what comes in; None where they have the same structure, or nothing comes in for it."""
    path = f"{prefix}{name}." if name else prefix
    own = {key: tensor for key, tensor in [*module._parameters.items(), *module._buffers.items()] if tensor is not None}
    theirs = {key: state_dict[path + key] for key in own if path + key in state_dict}
    bits = state_dict.get(path + RECORD)
    live, incoming = record_of(module) or Record(), Record() if bits is None else Record.decode(bits)
    structure = state_dict.get(path + STRUCTURE)
    split = {**live.shapes, **incoming.shapes}
    if not (split or live.attributes or incoming.attributes):
        return None
    saved = own.keys() - module._non_persistent_buffers_set - {RECORD}
    if not (theirs or bits is not None or (not saved and _comes_in(model, name, state_dict, prefix))):
        return None
    carried = {key: _carried(own[key], key, live, incoming) for key in split if key in own and key not in saved}
    theirs.update(carried)
    for key in sorted(split, key=list(own).index if split.keys() <= own.keys() else str):
        _check_tensor(path + key, key, own, theirs, live, incoming, structure if key == "weight" else None)
    masks = _masks_in(module, path, split, state_dict, theirs)
    check_maskable(module, name)
    if structure is not None and (reason := cannot_group(module)):
        raise ValueError(f"The checkpoint holds `{path}weight` in blocks, which this model cannot: {reason}.")
    semi_structured = path + MARK in state_dict
    if semi_structured:
        _check_semi_structured(module, path, masks.get("weight"))
    attributes = _attributes(module, path, live, incoming)
    if (
        all(own[key].shape == theirs[key].shape for key in split)
        and _same(bits, own.get(RECORD))
        and _same(structure, structure_of(module))
        and semi_structured == is_semi_structured(module)
        and all((mask is None) == (mask_of(module, key) is None) for key, mask in masks.items())
    ):
        return None
    shaped = {key: own[key].new_zeros(theirs[key].shape) for key in split} | carried
    return Rebuild(name, module, shaped, masks, attributes, bits, structure, semi_structured)


def apply_rebuild(rebuild: Rebuild) -> None:
    """Give a module its new widths, masks and layout; tensors of a new shape are zero, but for what is carried."""
    module = rebuild.module
    module._buffers.pop(RECORD, None)
    set_semi_structured(module, on=False)
    for key in rebuild.masks:
        set_mask(module, key, None)
    set_structure(module, None)
    for key, value in rebuild.tensors.items():
        old = module._parameters.get(key)
        if old is None:
            module._buffers[key] = value
        elif old.shape != value.shape:
            module._parameters[key] = resized(old, value)
    # First the record, then the masks, as a split does: some code pairs the buffers of two models by position. They are
    # copies, as a tensor that came from a mapped file keeps the whole file in memory.
    if rebuild.bits is not None:
        device = next((tensor.device for tensor in rebuild.tensors.values()), torch.device("cpu"))
        module.register_buffer(RECORD, rebuild.bits.to(device, copy=True))
    for key, value in rebuild.attributes.items():
        current = getattr(module, key)
        setattr(module, key, value if isinstance(current, int) else type(current)(value))
    if rebuild.structure is not None:
        set_structure(module, rebuild.structure.to(module.get_parameter("weight").device))
    for key, mask in rebuild.masks.items():
        if mask is not None:
            set_mask(module, key, mask.clone())
    if rebuild.semi_structured:
        set_semi_structured(module)


def _comes_in(model: nn.Module, name: str, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a checkpoint has something for a module or, where that has no tensors, for the next one around it."""
    while True:
        path = f"{prefix}{name}." if name else prefix
        keys = [key for key in model.get_submodule(name).state_dict() if key.rpartition(".")[2] != RECORD]
        if keys or not name:
            return any(path + key in state_dict for key in keys)
        name = name.rpartition(".")[0]


def _masks_in(
    module: nn.Module,
    path: str,
    split: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
) -> dict[str, Tensor | None]:
    """What comes in as the mask of each parameter that is split or masked; None for none."""
    masks = {
        key: state_dict.get(f"{path}{key}_mask")
        for key in module._parameters
        if key in split or mask_of(module, key) is not None
    }
    for key, mask in masks.items():
        if mask is not None and (mask.dtype != torch.bool or key not in theirs or mask.shape != theirs[key].shape):
            raise ValueError(
                f"The checkpoint is broken: the mask of `{path}{key}` is {mask.dtype} {tuple(mask.shape)}; it has to "
                "be bool and of its weight's shape."
            )
    return masks


def _check_semi_structured(module: nn.Module, path: str, mask: Tensor | None) -> None:
    """Refuse a weight in 2:4 form that the module cannot hold, or whose mask is not 2:4."""
    if not isinstance(module, nn.Linear):
        what = f"the model has a {type(module).__name__} there"
    else:
        reason = "it has none" if mask is None else not_semi_structured(mask)
        what = f"its mask: {reason}" if reason else ""
    if what:
        raise ValueError(f"The checkpoint and the model do not fit: `{path}weight` is stored in 2:4 form, but {what}.")


def _attributes(module: nn.Module, path: str, live: Record, incoming: Record) -> dict[str, Any]:
    """Integers of the module that grow with its widths (``out_features``), as they have to be."""
    attributes = {key: values[0] for key, values in live.attributes.items()}
    attributes.update((key, values[1]) for key, values in incoming.attributes.items())
    for key in attributes:
        if not hasattr(module, key):
            raise ValueError(f"The checkpoint and the model do not fit: `{path}{key}` grew there and is missing here.")
        here = live.attributes.get(key, [plain(getattr(module, key))])[0]
        there = incoming.attributes.get(key, [here])[0]
        if here != there:
            raise ValueError(
                f"The checkpoint is of another network: `{path}{key}` was {there} there before its first split, and "
                f"{here} here; build the model with the checkpoint's widths."
            )
    return attributes


def _carried(value: Tensor, key: str, live: Record, incoming: Record) -> Tensor:
    """A buffer that no checkpoint holds, at the incoming widths: entries of one unit are alike in all its copies."""
    for dim in range(value.dim()):
        if key in live.shapes:
            first = np.unique(live.parents(key, dim).numpy(), return_index=True)[1]
            value = value.index_select(dim, torch.from_numpy(first).to(value.device))
        if key in incoming.shapes and value.shape[dim] == incoming.shapes[key][dim]:
            value = value.index_select(dim, incoming.parents(key, dim).to(value.device))
    return value


def _same(theirs: Tensor | None, ours: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours.cpu(), theirs.cpu())


def _check_tensor(
    path: str,
    key: str,
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    live: Record,
    incoming: Record,
    structure: Tensor | None,
) -> None:
    """Refuse a tensor that was another before the first split, or is not what its record and its structure say."""
    if key not in own or key not in theirs:
        raise ValueError(
            f"The checkpoint and the model do not fit: `{path}` was split in one and is missing in the other."
        )
    found = tuple(theirs[key].shape)
    if key in incoming.shapes:
        expected = incoming.shape_now(key)
        if structure is not None:
            expected = (count_blocks(structure, expected[0]) * math.prod(expected[2:]), 1)
        if found != expected:
            raise ValueError(f"The checkpoint is broken: `{path}` has shape {found}, but its record says {expected}.")
    here, there = tuple(live.shapes.get(key, own[key].shape)), tuple(incoming.shapes.get(key, found))
    if here != there:
        raise ValueError(
            f"The checkpoint is of another network: `{path}` had shape {there} there before its first split, and "
            f"{here} here; build the model with the checkpoint's widths."
        )
