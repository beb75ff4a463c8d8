"""Operators that only rearrange entries: the same operator, run on the labels, says what they do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.facts import Use
from fpe_lightning.sites.tracing.labels import aligned, compress, varying
from fpe_lightning.sites.tracing.operators import rule

SAME = (
    "_to_copy to clone detach detach_copy alias contiguous lift_fresh lift_fresh_copy positive pin_memory "
    "native_dropout_backward requires_grad _assert_tensor_metadata"
)
VIEWS = "view _unsafe_view reshape _reshape_alias reshape_as view_as"
REARRANGE = (
    "permute transpose t unsqueeze squeeze expand repeat pixel_shuffle pixel_unshuffle movedim moveaxis swapaxes "
    "swapdims unfold native_channel_shuffle channel_shuffle tile numpy_T broadcast_to flatten unflatten mT expand_as "
    "repeat_interleave"
)
CUTS = "slice select split split_with_sizes chunk unbind narrow tensor_split unsafe_split unsafe_chunk"
OTHERS = "as_strided cat concat concatenate stack roll flip constant_pad_nd index_select index"
MOVES = frozenset(" ".join([SAME, VIEWS, REARRANGE, CUTS, OTHERS]).split())
"""Operators that only move entries."""


@rule(*SAME.split())
def same(call: Call) -> None:
    """Entries stay where they are."""
    tag = call.tag(call.input)
    call.emit(tag.labels, parameter=tag.parameter, filler=tag.filler)


@rule("as_strided")
def as_strided(call: Call) -> None:
    """Other strides for the same entries (a change of memory format) keep the labels; anything else is refused."""
    old, new = call.input, call.outputs[0]
    # The stride of an axis of one entry says nothing.
    kept = [axis for axis, size in enumerate(old.shape) if size > 1]
    if old.shape == new.shape and all(old.stride(axis) == new.stride(axis) for axis in kept):
        same(call)
        return
    call.freeze(call.labels(old), "unknown form of as_strided")
    call.emit(())


@rule(*VIEWS.split())
def view(call: Call) -> None:
    """Cut the same sequence of entries into other axes."""
    output = call.outputs[0]
    labels = []
    for label in call.labels(call.input):
        if output.numel() != call.input.numel():  # a view as another type
            call.facts.freeze(label, f"unknown form of {call.name}")
            continue
        # Labels are entries too: the same view of them says where each unit goes.
        seen = compress(label.expand(call.shapes[0]).reshape(output.shape))
        # Units on two axes of the view: which entries belong together is decided by the reader of each.
        if len(varying(seen)) > len(varying(label)):
            call.facts.bundle(label, "an axis is split by a view")
        labels.append(seen)
    tag = call.tag(call.input)
    call.emit(labels, parameter=tag.parameter, filler=tag.filler)


@rule(*REARRANGE.split(), *CUTS.split())
def rearrange(call: Call) -> None:
    """Move, repeat or cut entries."""
    tag = call.tag(call.input)
    per_output: list[list[Tensor]] = [[] for _ in call.outputs]
    for label in tag.labels:
        # Labels move as the entries do, so the operator itself is run on them.
        whole = label.expand(call.shapes[0])
        moved = _run(call, whole)
        if call.name in CUTS.split():
            _cut(call, label, whole, moved)
        for labels, piece in zip(per_output, moved, strict=True):
            labels.append(compress(piece))
    for output, labels in zip(call.outputs, per_output, strict=True):
        call.emit(labels, output, parameter=tag.parameter, filler=tag.filler)


def _run(call: Call, label: Tensor) -> list[Tensor]:
    """Run the operator itself on a label that has the shape of its input."""
    result: Any = call.function(label, *call.positional[1:], **call.keywords)
    return [result] if isinstance(result, Tensor) else list(result)


def _cut(call: Call, label: Tensor, whole: Tensor, pieces: list[Tensor]) -> None:
    """A cut through a labelled axis: its units belong together, and the positions of the cut are sizes to remember."""
    axis = (call.arguments.get("dim") or 0) % whole.dim()
    if axis not in varying(label) or (len(pieces) == 1 and pieces[0].shape == whole.shape):
        return
    # One unit of many: at another width another one would be picked.
    if call.name in ("select", "unbind") and varying(label) == (axis,):
        call.facts.freeze(label, "a single entry is selected from it")
        return
    call.facts.bundle(label, f"{call.name} cuts the axis")
    for bound in ("start", "end"):
        position = call.arguments.get(bound)
        if isinstance(position, int) and 0 < position < whole.shape[axis]:
            part = label.narrow(axis, 0, position)
            call.facts.uses.append(Use(call.module, position, None, part, written=True))


@rule("cat", "concat", "concatenate", "stack")
def concatenate(call: Call) -> None:
    """Lay tensors behind one another along an axis."""
    output = call.outputs[0]
    axis = call.arguments["dim"] % output.dim()
    stack = call.name == "stack"
    # Torch skips empty one-dimensional tensors.
    pieces = [tensor for tensor in call.arguments["tensors"] if tensor.dim() > 1 or tensor.numel()]
    call.value(*pieces)
    if all(call.tag(piece).filler for piece in pieces):
        call.emit((), filler=True)
        return
    labels = [[la.unsqueeze(axis) if stack else la for la in call.labels(piece)] for piece in pieces]
    lengths = [1 if stack else piece.shape[axis] for piece in pieces]
    alongside = _alongside(call, pieces, labels, axis)
    call.emit(alongside + _behind(call, labels, lengths, axis))


def _alongside(call: Call, pieces: list[Tensor], labels: list[list[Tensor]], axis: int) -> list[Tensor]:
    """Labels that do not run along the concatenated axis: the same axis in all pieces."""
    flat = [(index, label) for index, group in enumerate(labels) for label in group if axis not in varying(label)]
    for index, label in flat:
        for other in range(len(pieces)):
            if other == index or call.tag(pieces[other]).filler:
                continue
            matches = [match for match in labels[other] if set(varying(match)) & set(varying(label))]
            if not matches:
                call.facts.freeze(label, "it is concatenated with a tensor that no weight computes")
            for match in matches:
                if axis in varying(match):
                    call.freeze((label, match), "it is concatenated with a tensor of another layout")
                else:
                    call.facts.tie(label, match)
    return [max((label for _, label in flat), key=Tensor.numel)] if flat else []


def _behind(call: Call, labels: list[list[Tensor]], lengths: list[int], axis: int) -> list[Tensor]:
    """Labels that run along the concatenated axis, one behind the other; pieces without one are unlabelled."""
    running = [[label for label in group if axis in varying(label)] for group in labels]
    found = [label for group in running for label in group]
    if not found:
        return []
    dim = found[0].dim()
    sizes = [max(label.shape[position] for label in found) for position in range(dim)]
    parts = []
    for group, length in zip(running, lengths, strict=True):
        if len(group) > 1:
            call.freeze(group, "it is concatenated with a tensor of another layout")
        # Unlabelled entries keep the places of those that follow right.
        piece = group[0] if group else torch.zeros([1] * dim, dtype=torch.long)
        parts.append(piece.expand([length if position == axis else sizes[position] for position in range(dim)]))
    return [compress(torch.cat(parts, axis))]


@rule("roll", "flip")
def reorder(call: Call) -> None:
    """Reorder positions of unlabelled axes."""
    _pass_unless(call, {axis % call.input.dim() for axis in call.arguments["dims"]}, "reorders the axis")


@rule("constant_pad_nd")
def pad(call: Call) -> None:
    """Pad unlabelled axes."""
    padding = call.arguments["pad"]
    dim = call.input.dim()
    axes = {dim - 1 - i for i in range(len(padding) // 2) if padding[2 * i] or padding[2 * i + 1]}
    call.value(call.input)
    _pass_unless(call, axes, "pads the axis")


@rule("index_select", "index")
def index(call: Call) -> None:
    """Select positions of unlabelled axes."""
    tensor = call.input
    call.value(tensor)
    if call.name == "index_select":
        _pass_unless(call, {call.arguments["dim"] % tensor.dim()}, "picks entries of the axis")
    else:
        call.emit(_indexed(call, label) for label in call.labels(tensor))


def _indexed(call: Call, label: Tensor) -> Tensor:
    """The label of ``tensor[i, :, j]``; indexed axes become the axes of the index, in front unless adjacent."""
    indices = call.arguments["indices"]
    axes = [axis for axis, entry in enumerate(indices) if entry is not None]
    boolean = any(indices[axis].dtype in (torch.bool, torch.uint8) for axis in axes)
    if boolean or set(varying(label)) & set(axes):
        call.facts.freeze(label, "indexing picks entries of the axis")
        return torch.zeros(1, dtype=torch.long)
    # The axes of the index replace the indexed ones, in the place of the first if these are adjacent.
    width = max(indices[axis].dim() for axis in axes)
    rest = [label.shape[axis] for axis in range(label.dim()) if axis not in axes]
    position = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    return label.reshape(rest[:position] + [1] * width + rest[position:])


def _pass_unless(call: Call, axes: set[int], what: str) -> None:
    """Keep labels that do not vary along ``axes``; refuse the others."""
    kept = []
    for label in call.labels(call.input):
        if set(varying(label)) & axes:
            call.facts.freeze(label, f"{call.name} {what}")
        else:
            kept.append(aligned(label, call.input.dim()))
    call.emit(kept, filler=call.tag(call.input).filler)
