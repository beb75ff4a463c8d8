"""Compare each module of a model with an incoming ``state_dict``, and give it the widths, masks and layout in there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpe_lightning.checkpoints.checks import check_growth, check_tensors, check_widths, is_width, layout_in
from fpe_lightning.checkpoints.resize import resized
from fpe_lightning.expansion.draft import plain
from fpe_lightning.sparse.guard import mask_name
from fpe_lightning.sparse.layout import MASKED, Layout, Structure, layout_of
from fpe_lightning.sparse.masked import mask_of, set_mask
from fpe_lightning.sparse.record import RECORD, Record, record_of


@dataclass
class Rebuild:
    """The new structure of one module.

    Attributes:
        module: The module.
        tensors: Zeros of the new shape for each tensor that was split, or carried values, by name.
        masks: The mask of each parameter, or None for none, by name.
        attributes: Integers that grow with widths, by name.
        bits: The record, or None for none.
        layout: How the weight is stored.
        structure: The structure in that layout.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    masks: dict[str, Tensor | None]
    attributes: dict[str, Any]
    bits: Tensor | None
    layout: Layout
    structure: Structure


def plan_rebuild(
    model: nn.Module, name: str, module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, growth: float
) -> Rebuild | None:
    """Compare one module with a checkpoint; None where both have one structure, or the checkpoint lacks the module.

    Args:
        model: The model.
        name: Name of the module.
        module: The module.
        state_dict: The checkpoint.
        prefix: The prefix of the model's own names in it.
        growth: From :func:`~fpe_lightning.checkpoints.checks.largest_growth`.

    Raises:
        ValueError: If the checkpoint is broken, or of another network.
    """
    path = f"{prefix}{name}." if name else prefix
    own = {key: tensor for key, tensor in [*module._parameters.items(), *module._buffers.items()] if tensor is not None}
    theirs = {key: state_dict[path + key] for key in own if path + key in state_dict}
    bits = state_dict.get(path + RECORD)
    live, incoming = record_of(module) or Record(), Record() if bits is None else Record.decode(bits, path + RECORD)
    layout, structure = layout_in(state_dict, path)
    # A module that was split nowhere is left to `load_state_dict`.
    split = {**live.shapes, **incoming.shapes}
    if not (split or live.attributes or incoming.attributes):
        return None
    # A checkpoint may hold a part of the model only, and buffers that are never saved have to follow their record.
    saved = own.keys() - module._non_persistent_buffers_set - {RECORD}
    if not (theirs or bits is not None or (not saved and _comes_in(model, name, state_dict, prefix))):
        return None
    check_tensors(path, theirs, own)
    for key in [key for key in incoming.shapes if key in own and key not in saved]:
        check_growth(path + key, incoming.shapes[key], incoming.shape_now(key), growth)
    carried = {key: _carried(own[key], key, live, incoming) for key in split if key in own and key not in saved}
    theirs.update(carried)
    # Nothing that a file says is believed before it fits what the model was before its first split.
    for key in sorted(split, key=list(own).index if split.keys() <= own.keys() else str):
        _check_tensor(path + key, key, own, theirs, live, incoming, layout if key == "weight" else MASKED, structure)
    masks = _masks_in(module, path, split, state_dict, theirs)
    if layout is not MASKED and (reason := layout.check(module, structure, masks.get("weight"))):
        raise ValueError(f"The checkpoint holds `{path}weight` {layout.phrase}, which this model cannot: {reason}.")
    attributes = _attributes(module, path, live, incoming)
    check_widths(module, path, attributes, live, incoming, growth)
    if (
        # Same shapes, history, layout and masks: nothing to do, and values stay in place.
        all(own[key].shape == theirs[key].shape for key in split)
        and _same(bits, own.get(RECORD))
        and layout is layout_of(module)
        and all(_same(structure[key], own.get(key)) for key in layout.buffers)
        and all((mask is None) == (mask_of(module, key) is None) for key, mask in masks.items())
    ):
        return None
    shaped = {key: own[key].new_zeros(theirs[key].shape) for key in split} | carried
    return Rebuild(module, shaped, masks, attributes, bits, layout, structure)


def apply_rebuild(rebuild: Rebuild) -> None:
    """Give a module its new widths, masks and layout; tensors of a new shape are zero, or carried."""
    module, layout = rebuild.module, rebuild.layout
    # Back to a plain module.
    module._buffers.pop(RECORD, None)
    if (current := layout_of(module)) is not MASKED:
        current.take_off(module)
    for key in rebuild.masks:
        set_mask(module, key, None)
    # Widths.
    for key, value in rebuild.tensors.items():
        old = module._parameters.get(key)
        if old is None:
            module._buffers[key] = value
        elif old.shape != value.shape:
            module._parameters[key] = resized(old, value)
    # The record before masks, as in a split: some code pairs the buffers of two models by position. All are copies, as
    # a tensor that came from a mapped file keeps the whole file in memory.
    if rebuild.bits is not None:
        device = next((tensor.device for tensor in rebuild.tensors.values()), torch.device("cpu"))
        module.register_buffer(RECORD, rebuild.bits.to(device, copy=True))
    for key, value in rebuild.attributes.items():
        current_value = getattr(module, key)
        setattr(module, key, value if isinstance(current_value, int) else type(current_value)(value))
    # A packed weight has a mask of its own shape; any other layout needs the mask first.
    if layout.packs:
        _put_on(module, layout, rebuild.structure)
    for key, mask in rebuild.masks.items():
        if mask is not None:
            set_mask(module, key, mask.clone())
    if not layout.packs and layout is not MASKED:
        _put_on(module, layout, rebuild.structure)


def _put_on(module: nn.Module, layout: Layout, structure: Structure) -> None:
    device = module.get_parameter("weight").device
    layout.put_on(module, {key: tensor.to(device, copy=True) for key, tensor in structure.items()})


def _comes_in(model: nn.Module, name: str, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a checkpoint has tensors of a module or, where that has none, of the next module around it."""
    while True:
        path = f"{prefix}{name}." if name else prefix
        keys = [key for key in model.get_submodule(name).state_dict() if key.rpartition(".")[2] != RECORD]
        # A module without tensors, such as a reshape with an integer, belongs to what is around it.
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
    """The incoming mask of each parameter that is split or masked; None for none."""
    masks = {
        key: state_dict.get(path + mask_name(key))
        for key in module._parameters
        if key in split or mask_of(module, key) is not None
    }
    for key, mask in masks.items():
        if mask is None:
            continue
        check_tensors(path, {mask_name(key): mask}, {})
        if mask.dtype != torch.bool or key not in theirs or mask.shape != theirs[key].shape:
            raise ValueError(
                f"The checkpoint is broken: the mask of `{path}{key}` is {mask.dtype} {tuple(mask.shape)}; it has to "
                "be bool and of its weight's shape."
            )
    return masks


def _attributes(module: nn.Module, path: str, live: Record, incoming: Record) -> dict[str, Any]:
    """New values of the module's integers that grow with its widths, such as ``out_features``."""
    # Back to the value before the first split, then on to that of the checkpoint.
    attributes = {key: values[0] for key, values in live.attributes.items()}
    attributes.update((key, values[1]) for key, values in incoming.attributes.items())
    for key, value in attributes.items():
        if hasattr(module, key) and not is_width(module, key, value):
            raise ValueError(f"The checkpoint is broken: by its record `{path}{key}` grew, which is no width here.")
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
    """A buffer that no checkpoint holds, at the incoming widths; all copies of a unit have equal entries."""
    for dim in range(value.dim()):
        if key in live.shapes:
            # Shrink to one entry for each unit of before the first split, then copy it as the checkpoint did.
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
    layout: Layout,
    structure: Structure,
) -> None:
    """Refuse a tensor that had another shape before the first split, or that its record or structure contradicts."""
    if key not in own or key not in theirs:
        raise ValueError(
            f"The checkpoint and the model do not fit: `{path}` was split in one and is missing in the other."
        )
    found = tuple(theirs[key].shape)
    if key in incoming.shapes:
        try:
            expected = tuple(layout.stored_shape(structure, torch.Size(incoming.shape_now(key))))
        except ValueError as error:
            raise ValueError(f"The checkpoint is broken: `{path}` is stored {layout.phrase}, but {error}.") from error
        if found != expected:
            raise ValueError(f"The checkpoint is broken: `{path}` has shape {found}, but its record says {expected}.")
    here, there = tuple(live.shapes.get(key, own[key].shape)), tuple(incoming.shapes.get(key, found))
    if here != there:
        raise ValueError(
            f"The checkpoint is of another network: `{path}` had shape {there} there before its first split, and "
            f"{here} here; build the model with the checkpoint's widths."
        )
