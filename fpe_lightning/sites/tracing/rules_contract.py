"""Contractions: where a weight computes units (producer) or reads them (consumer)."""

from __future__ import annotations

from torch import Tensor

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.facts import Role
from fpe_lightning.sites.tracing.labels import along, transposed, varying
from fpe_lightning.sites.tracing.operators import rule

UNLABELLED_INPUT = "it is contracted with an axis that no weight computes"
PRODUCTS = "mm bmm mv dot addmm baddbmm addmv linear matmul _grouped_mm _scaled_grouped_mm"
GROUPED = {
    (2, 3): ("ik", "ekj", "ij"),
    (3, 3): ("eik", "ekj", "eij"),
    (3, 2): ("eik", "kj", "ij"),
    (2, 2): ("ik", "kj", "eij"),
}
"""Axes of ``_grouped_mm`` by the number of axes of its operands; rows or columns are cut into groups by offsets."""
CONVOLUTIONS = "convolution _convolution conv1d conv2d conv3d mkldnn_convolution cudnn_convolution"
CONTRACTIONS = frozenset((*PRODUCTS.split(), *CONVOLUTIONS.split(), "embedding"))
FUSED = (
    *("attention_math", "flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"),
    "fused_attention_overrideable",
)
ACTIVATIONS = "contraction of two activations (queries with keys, or with a weight that is itself computed)"
HEADS = "attention head structure: a batched product runs over the axis"


@rule(*PRODUCTS.split())
def matmul(call: Call) -> None:
    """Matrix products of every form."""
    given = call.arguments
    if call.name == "mm":
        contract(call, given["self"], "ik", given["mat2"], "kj", "ij")
    elif call.name == "bmm":
        contract(call, given["self"], "bik", given["mat2"], "bkj", "bij")
    elif call.name == "mv":
        contract(call, given["self"], "ik", given["vec"], "k", "i")
    elif call.name == "dot":
        contract(call, given["self"], "k", given["tensor"], "k", "")
    elif call.name == "addmm":
        contract(call, given["mat1"], "ik", given["mat2"], "kj", "ij")
        call.bias(given["self"], 1)
    elif call.name == "baddbmm":
        contract(call, given["batch1"], "bik", given["batch2"], "bkj", "bij")
        call.bias(given["self"], 2)
    elif call.name == "linear":
        outer = "abcdefgh"[: call.input.dim() - 1]
        contract(call, call.input, outer + "k", given["weight"], "jk", outer + "j")
        call.bias(given["bias"], call.input.dim() - 1)
    elif call.name == "_grouped_mm":
        first, second = given["self"], given["mat2"]
        left, right, out = GROUPED[first.dim(), second.dim()]
        contract(call, first, left, second, right, out)
        call.bias(given.get("bias"), len(out) - 1)
    else:
        for tensor in call.tensors:
            call.freeze(call.labels(tensor), f"unknown operator {call.name}")
        call.emit(())


def contract(call: Call, first: Tensor, left: str, second: Tensor, right: str, out: str) -> None:
    """Contract two tensors whose axes are named by letters; letters missing from ``out`` are summed over."""
    # 1. The labels of the summed axes on either side.
    summed = set(left) & set(right) - set(out)
    sides = [(first, left, call.labels(first), second, right), (second, right, call.labels(second), first, left)]
    inner = [[la for la in labels if _letters(la, names) & summed] for _, names, labels, _, _ in sides]
    one_weight = call.tag(first).parameter != call.tag(second).parameter
    single = all(len(labels) == 1 and len(varying(labels[0])) == 1 for labels in inner)
    # 2. A weight's summed axis holds inputs, whatever it is contracted with: this is the axis to partition.
    for (tensor, *_), labels in zip(sides, inner, strict=True):
        if call.tag(tensor).parameter:
            for label in labels:
                call.facts.mark(label, Role.INPUT)
    # 3. A weight reads units where one axis of each side meets; everything else mixes units and is refused.
    if single and one_weight:
        call.facts.tie(inner[0][0].reshape(-1), inner[1][0].reshape(-1))
        call.facts.mark(inner[0 if call.tag(first).parameter else 1][0], Role.CONSUMER)
    else:
        both = bool(inner[0] and inner[1])
        reason = ACTIVATIONS if both else UNLABELLED_INPUT
        if both and one_weight:
            reason = "a weight contracts it together with another axis"
        call.freeze([*inner[0], *inner[1]], reason)
    # 4. An axis that neither the other operand nor the output has (experts that take turns) is none of the output's.
    for index, (tensor, names, labels, other, other_names) in enumerate(sides):
        lost = set(names) - set(out) - summed
        call.freeze([la for la in labels if _letters(la, names) & lost], "each of its entries serves some rows alone")
        sides[index] = (tensor, names, [la for la in labels if not _letters(la, names) & lost], other, other_names)
    # 5. Free axes label the output; those of a weight compute it.
    outputs: list[Tensor] = []
    for tensor, names, labels, other, other_names in sides:
        for label in labels:
            letters = _letters(label, names)
            if letters & summed:
                continue
            if call.tag(tensor).parameter:
                call.facts.mark(label, Role.PRODUCER)
            _batch(call, label, letters, other, other_names, summed)
            outputs.append(transposed(label, names, out))
    call.emit(outputs)


def _letters(label: Tensor, names: str) -> set[str]:
    return {names[axis] for axis in varying(label)}


def _batch(call: Call, label: Tensor, letters: set[str], other: Tensor, names: str, summed: set[str]) -> None:
    """Tie the labels of a batch axis, which both operands have; refuse labels of more than one axis."""
    sizes = dict(zip(names, other.shape, strict=True))
    batch = {letter for letter in letters if sizes.get(letter, 1) > 1}
    if not batch:
        return
    matches = [m for m in call.labels(other) if _letters(m, names) & batch and not _letters(m, names) & summed]
    if not matches:
        call.facts.freeze(label, HEADS)
    for match in matches:
        if _letters(match, names) == letters and len(letters) == 1:
            call.facts.tie(label.reshape(-1), match.reshape(-1))
        else:
            call.freeze((label, match), HEADS)


@rule(*CONVOLUTIONS.split())
def convolution(call: Call) -> None:
    """Convolutions: dense, grouped, depthwise and transposed."""
    tensor, weight = call.arguments["input"], call.arguments["weight"]
    groups = call.arguments.get("groups") or 1
    flipped = bool(call.arguments.get("transposed"))
    inputs = _channels(call, tensor)
    rows, columns = _weight_labels(call, weight, flipped)
    # How columns read the input, by kind of convolution.
    if groups == 1:
        _dense(call, inputs, columns, weight)
    elif flipped:
        call.freeze([*inputs, *rows, *columns], "a grouped transposed convolution reads or computes it")
        rows = []
    elif tensor.shape[1] == groups:
        rows = _depthwise(call, inputs, rows, groups)
    else:
        _grouped(call, inputs, rows, columns, weight, groups)
    call.emit((along(label, 1, call.outputs[0].dim()) for label in rows), call.outputs[0])
    # Rows compute the output channels, unless they are the filters of a depthwise convolution.
    if tensor.shape[1] != groups or groups == 1:
        for label in rows:
            if call.tag(weight).parameter:
                call.facts.mark(label, Role.PRODUCER)
    call.bias(call.arguments.get("bias"), 1)


def _channels(call: Call, tensor: Tensor) -> list[Tensor]:
    """The labels of the input's channels; a channel that was cut out of a longer axis is one unit in all positions."""
    kept = []
    for label in call.labels(tensor):
        if 1 in varying(label):
            kept.append(call.merge(label, [axis for axis in varying(label) if axis != 1]))
        elif varying(label) != (0,):
            call.facts.freeze(label, "a convolution slides over the axis")
        else:
            call.facts.freeze(label, "a convolution takes the axis for its batch")
    return kept


def _weight_labels(call: Call, weight: Tensor, flipped: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The labels of a convolution's output channels and of its input channels."""
    labels = call.labels(weight)
    row_axis, column_axis = (1, 0) if flipped else (0, 1)
    for label in labels:
        if len(varying(label)) > 1 or varying(label)[0] > 1:
            call.facts.freeze(label, "it is a kernel's extent")
    rows = [label for label in labels if varying(label) == (row_axis,)]
    columns = [label for label in labels if varying(label) == (column_axis,)]
    if call.tag(weight).parameter:
        for label in columns:
            call.facts.mark(label, Role.INPUT)
    return rows, columns


def _dense(call: Call, inputs: list[Tensor], columns: list[Tensor], weight: Tensor) -> None:
    if inputs and columns and call.tag(weight).parameter:
        call.facts.tie(inputs[0].reshape(-1), columns[0].reshape(-1))
        call.facts.mark(columns[0], Role.CONSUMER)
    else:
        computed = "the weight that reads it is computed, not a plain parameter"
        call.freeze([*inputs, *columns], computed if inputs and columns else UNLABELLED_INPUT)


def _depthwise(call: Call, inputs: list[Tensor], rows: list[Tensor], groups: int) -> list[Tensor]:
    """One filter (or several) for each channel: the filters are values of the channel."""
    for label in rows:
        call.facts.mark(label, Role.DEPTHWISE)
    if not (inputs and rows):
        call.freeze([*inputs, *rows], "depthwise only: the filters follow an axis that no weight computes")
        return []
    call.facts.tie(inputs[0].reshape(-1, 1), rows[0].reshape(groups, -1))
    return rows


def _grouped(
    call: Call, inputs: list[Tensor], rows: list[Tensor], columns: list[Tensor], weight: Tensor, groups: int
) -> None:
    """Column ``i`` of the weight reads channel ``i`` of every group, so those channels are one unit."""
    if inputs and columns and call.tag(weight).parameter:
        call.facts.tie(inputs[0].reshape(groups, -1), columns[0].reshape(1, -1))
        call.facts.mark(columns[0], Role.CONSUMER)
        call.facts.bundle(inputs[0], "a grouped convolution reads it")
    else:
        call.freeze([*inputs, *columns], UNLABELLED_INPUT)
    for label in rows:
        call.facts.bundle(label, "a grouped convolution computes it")
        call.facts.group(label, groups)


@rule("embedding")
def embedding(call: Call) -> None:
    """A table of rows: its width is computed from a vocabulary, which has no inputs to partition."""
    table = call.arguments["weight"]
    for label in call.labels(table):
        call.facts.mark(label, Role.PRODUCER)
        call.facts.freeze(label, "an embedding computes it, whose inputs are a vocabulary")
    dim = call.outputs[0].dim()
    call.emit(along(label, dim - 1, dim) for label in call.labels(table) if varying(label) == (1,))


@rule(
    "scaled_dot_product_attention",
    "_native_multi_head_attention",
    *(f"_scaled_dot_product_{kind}" for kind in FUSED),
)
def attention(call: Call) -> None:
    """Fused attention mixes the entries of every head."""
    for tensor in call.tensors:
        call.freeze(call.labels(tensor), "attention head structure: fused attention mixes the axis")
    call.emit(())
