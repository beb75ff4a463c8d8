"""Aggregation: entries of one axis are gathered or summed by an index, as nodes of a graph over their edges."""

from __future__ import annotations

from torch import Tensor

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.labels import aligned, varying
from fpe_lightning.sites.tracing.operators import rule

SCATTERS = "scatter scatter_add scatter_reduce index_add index_copy index_reduce"
SPARSE = "_sparse_mm _sparse_addmm _sparse_mm_reduce_impl"
AGGREGATES = frozenset((*SCATTERS.split(), "gather", "segment_reduce", "index_put", "_index_put_impl", *SPARSE.split()))


@rule(*SCATTERS.split())
def scatter(call: Call) -> None:
    """Entries of one axis are sent to positions on it; all other axes stay as they are."""
    given = call.arguments
    # Names of arguments differ between scatter, index_add and index_copy.
    target, index = given["self"], given["index"]
    source = next((given[name] for name in ("src", "source") if isinstance(given.get(name), Tensor)), None)
    axis = given["dim"] % max(target.dim(), 1)
    whole = index if call.name.startswith("scatter") else None  # an index of one axis is the same for all units
    tensors = [tensor for tensor in (target, source) if tensor is not None]
    call.value(*tensors)
    kept = [_kept(call, tensor, axis, whole) for tensor in tensors]
    labels = list(kept[0])
    if source is not None:
        labels += _met(call, target, kept[0], kept[1], axis) + _met(call, source, kept[1], kept[0], axis)
    call.emit(labels)  # never a filler: counts and one-hot rows are made of constants


def _kept(call: Call, tensor: Tensor, axis: int, index: Tensor | None) -> list[Tensor]:
    """The labels that do not run along the axis, and along whose axes the index does not change."""
    kept = []
    for label in call.labels(tensor):
        if axis in varying(label):
            call.facts.freeze(label, f"{call.name} picks entries of the axis")
        elif index is not None and not _same_for_all(label, index, tensor):
            call.facts.freeze(label, f"{call.name} picks other entries for each of its units")
        else:
            kept.append(label)
    return kept


def _same_for_all(label: Tensor, index: Tensor, tensor: Tensor) -> bool:
    """Whether an index is the same for all units of a label, and there is one for each of them.

    Only an index that was expanded is known to be; the values of others may differ.
    """
    return all(index.stride(axis) == 0 and index.shape[axis] == tensor.shape[axis] for axis in varying(label))


def _met(call: Call, tensor: Tensor, labels: list[Tensor], others: list[Tensor], axis: int) -> list[Tensor]:
    """Tie labels to those of the other operand; refuse them where it has entries of its own."""
    other = next(each for each in call.tensors if each is not tensor and each.dim() == tensor.dim())
    for label in labels:
        matches = [match for match in others if set(varying(match)) & set(varying(label))]
        if not matches and not (call.tag(other).filler or call.tag(tensor).filler):
            call.facts.freeze(label, "it meets an axis that no weight computes (an input or a constant)")
        for match in matches:
            call.facts.tie(label, match, "sum")
    return labels


@rule("gather")
def gather(call: Call) -> None:
    """Entries of one axis are picked by an index of the output's shape."""
    axis = call.arguments["dim"] % max(call.input.dim(), 1)
    call.value(call.input)
    call.emit(_kept(call, call.input, axis, call.arguments["index"]))


@rule("segment_reduce")
def segment_reduce(call: Call) -> None:
    """Stretches of one axis are reduced; all other axes stay as they are."""
    tensor = call.arguments["data"]
    axis = call.arguments["axis"] % tensor.dim()
    call.value(tensor)
    call.emit(_kept(call, tensor, axis, None))


@rule("index_put", "_index_put_impl")
def index_put(call: Call) -> None:
    """Write rows: positions of the leading axes are picked, the others stay as they are."""
    target, values = call.arguments["self"], call.arguments["values"]
    indices = call.arguments["indices"]
    picked = [position for position, entry in enumerate(indices) if entry is not None]
    leading = picked == list(range(len(picked)))
    call.value(target, values)
    kept = []
    for label in call.labels(target):
        if set(varying(label)) & set(picked) or not leading:
            call.facts.freeze(label, "index_put picks entries of the axis")
        else:
            kept.append(label)
    # The values have the axes of the index first, then those of the target that are not picked.
    rest = target.dim() - len(picked)
    for label in call.labels(values):
        if not leading or any(axis < values.dim() - rest for axis in varying(label)):
            call.facts.freeze(label, "index_put picks entries of the axis")
            continue
        shape = [1] * len(picked) + list(aligned(label, max(label.dim(), rest)).shape[-rest or label.dim() :])
        moved = label.reshape(shape)
        matches = [match for match in call.labels(target) if set(varying(match)) & set(varying(moved))]
        for match in matches:
            call.facts.tie(moved, match, "sum")
        if not matches and not call.tag(target).filler:
            call.facts.freeze(moved, "it is written into a tensor that no weight computes")
        kept.append(moved)
    call.emit(kept)


@rule(*SPARSE.split())
def sparse_product(call: Call) -> None:
    """A sparse matrix mixes the rows of a dense one; its columns stay as they are."""
    dense = call.arguments.get("mat2", call.tensors[-1])
    kept = []
    for label in call.labels(dense):
        if varying(label) == (1,):
            kept.append(label)
        else:
            call.facts.freeze(label, "a sparse matrix mixes the axis")
    for tensor in call.tensors:
        if tensor is not dense:
            call.freeze(call.labels(tensor), "a sparse matrix mixes the axis")
    # The added matrix has entries of its own for each column.
    added = call.arguments.get("self") if call.name == "_sparse_addmm" else None
    if isinstance(added, Tensor) and added.numel() > 1 and not call.tag(added).filler and call.arguments["beta"]:
        call.freeze(kept, "it meets an axis that no weight computes (an input or a constant)")
    call.emit(kept)
