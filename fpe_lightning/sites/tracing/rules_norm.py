"""Normalisation, reductions, softmax and pooling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.labels import aligned, along, varying
from fpe_lightning.sites.tracing.operators import rule
from fpe_lightning.sites.tracing.rules_pointwise import pointwise

MEANS = "mean var std var_mean std_mean amax amin max min median aminmax"
SUMS = "sum linalg_vector_norm norm prod logsumexp argmax argmin any all nansum"
POOLS = [
    *(
        f"{kind}_pool{n}d"
        for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "fractional_max")
        for n in (1, 2, 3)
    ),
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
    *(f"{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "mkldnn_max_pool2d"),
    *("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"),
]
LINEAR_POOLS = frozenset(name for name in POOLS if "max" not in name)
COMPETITIONS = (
    "_softmax _log_softmax softmax log_softmax _safe_softmax cumsum cumprod logcumsumexp topk sort argsort kthvalue "
    "mode"
)
BATCH_NORMS = [
    *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional"),
    *("_batch_norm_with_update", "_batch_norm_no_update", "_batch_norm_with_update_functional"),
]


@rule(*BATCH_NORMS)
def batch_norm(call: Call) -> None:
    """Every channel is normalised by itself; scale, shift and running statistics are per-unit values."""
    kept = []
    for label in call.labels(call.input):
        if 1 in varying(label):
            # Statistics are over batch and places: units along these become one.
            kept.append(call.merge(label, [axis for axis in varying(label) if axis != 1]))
        else:
            call.facts.freeze(label, "batch norm averages over the axis")
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = call.arguments.get(name)
        call.value(tensor)
        for label in call.labels(tensor):
            for target in kept:
                call.facts.tie(target.reshape(-1), label.reshape(-1))
            if not kept:
                call.facts.freeze(label, "it normalises an axis that no weight computes")
    call.emit(kept, call.outputs[0])


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(call: Call) -> None:
    """Statistics over the last axes: their units can only be widened together."""
    dim = call.input.dim()
    _normalise(call, set(range(dim - len(call.arguments["normalized_shape"]), dim)), lambda label: aligned(label, dim))


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> None:
    """Statistics over groups of channels: copies must stay in the group of their original."""
    groups = int(call.arguments.get("group") or call.arguments["num_groups"])
    for label in call.labels(call.input):
        if varying(label) == (1,):
            call.facts.group(label, groups)
    _normalise(call, {1}, lambda label: along(label, 1, call.input.dim()))


def _normalise(call: Call, axes: set[int], place: Any) -> None:
    """Bundle the units of the normalised axes and tie scale and shift to them."""
    kept: list[Tensor] = []
    for label in call.labels(call.input):
        over = set(varying(label)) & axes
        # Units along kept axes would each get the statistics of a part.
        if over and set(varying(label)) - axes:
            call.facts.freeze(label, f"{call.name} normalises over part of the axis")
            continue
        if over:
            call.facts.bundle(label, call.name)
        kept.append(label)
    for name in ("weight", "bias"):
        tensor = call.arguments.get(name)
        call.value(tensor)
        for label in map(place, call.labels(tensor)):
            targets = [target for target in kept if set(varying(target)) & set(varying(label))]
            for target in targets:
                call.facts.tie(target, label)
            if not targets:
                call.facts.freeze(label, "it normalises an axis that no weight computes")
    call.emit(kept, call.outputs[0])


@rule(*MEANS.split(), *SUMS.split())
def reduction(call: Call) -> None:
    """Averages and extremes survive copies of all units; sums do not."""
    if call.name in ("max", "min") and isinstance(call.arguments.get("other"), Tensor):
        pointwise(call)
        return
    dim = call.input.dim()
    given = call.arguments.get("dim")
    listed = [given] if isinstance(given, int) else given
    axes = {axis % dim for axis in listed} if listed else set(range(dim))
    call.value(call.input)
    labels = []
    for label in call.labels(call.input):
        # All axes of the units are reduced: a mean over copies is the mean, a sum is not the sum.
        if set(varying(label)) <= axes:
            if call.name in MEANS.split():
                call.facts.bundle(label, call.name)
            else:
                call.facts.freeze(label, f"{call.name} over the axis")
            continue
        merged = call.merge(label, set(varying(label)) & axes)
        if not call.arguments.get("keepdim"):
            merged = merged.reshape([size for axis, size in enumerate(merged.shape) if axis not in axes])
        labels.append(merged)
    call.emit(labels)


@rule(*COMPETITIONS.split())
def softmax(call: Call) -> None:
    """Entries of the axis compete or add up: copies would change every one of them."""
    axis = call.arguments["dim"] % call.input.dim()
    labels = []
    call.value(call.input)
    for label in call.labels(call.input):
        if varying(label) == (axis,):
            call.facts.freeze(label, f"{call.name.strip('_')} over the axis")
        else:
            labels.append(call.merge(label, {axis} & set(varying(label))))
    call.emit(labels)


@rule(*POOLS)
def pool(call: Call) -> None:
    """Windows slide over the trailing axes, channel by channel."""
    dim = call.input.dim()
    spatial = next((int(digit) for digit in "123" if f"{digit}d" in call.name), 2)
    if call.name.startswith("grid_sampler"):
        spatial = dim - 2
    labels = []
    call.value(call.input)
    for label in call.labels(call.input):
        # Windows mix neighbours along places; channels stay apart.
        inside = {axis for axis in varying(label) if axis >= dim - spatial}
        if inside == set(varying(label)):
            call.facts.freeze(label, f"{call.name} slides over the axis")
        else:
            labels.append(call.merge(label, inside))
    call.emit(labels, filler=call.tag(call.input).filler)
