"""Operators that work entry by entry: units that meet at one position are one unit."""

from __future__ import annotations

from torch import Tensor

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.labels import aligned, varying
from fpe_lightning.sites.tracing.operators import rule

_FILLS = ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided")
_NOISE = ("bernoulli", "uniform", "normal", "exponential", "random")
FACTORIES = frozenset(
    (*_FILLS, *(f"new_{n}" for n in _FILLS), *(f"{n}_like" for n in _FILLS), *_NOISE, "scalar_tensor")
)
"""Operators that make constants or noise."""
SUMS = frozenset({"add", "sub", "rsub", "addcmul", "addcdiv", "lerp", "__iadd__", "__isub__"})
PRODUCTS = frozenset({"mul", "div", "__imul__"})
POINTWISE = (
    "pointwise where masked_fill dropout native_dropout fill zero celu clamp hardtanh hardswish hardsigmoid leaky_relu "
    "elu gelu silu mish rrelu_with_noise copysign softplus log_sigmoid_forward threshold nan_to_num prelu "
    "_prelu_kernel rrelu bernoulli alpha_dropout feature_dropout"
)


@rule(*POINTWISE.split())
def pointwise(call: Call) -> None:
    """Tie the labels of all operands along the axes on which both vary."""
    dim = call.outputs[0].dim()
    operands = [tensor for tensor in call.tensors if tensor.dim()]
    if all(call.tag(tensor).filler for tensor in operands):
        call.emit((), filler=True)
        return
    call.value(*operands)
    # Bring all labels to the axes of the output, as broadcasting does.
    shapes = [[1] * (dim - tensor.dim()) + _sizes(tensor) for tensor in operands]
    labels = [[aligned(label, dim) for label in call.labels(tensor)] for tensor in operands]
    covered: list[Tensor] = []
    for one, tensor in enumerate(operands):
        for label in labels[one]:
            for other in range(len(operands)):
                if operands[other] is tensor or call.tag(operands[other]).filler:
                    continue
                # The axes along which the label's units meet entries of the other operand one by one.
                met = {axis for axis in varying(label) if shapes[other][axis] > 1}
                matches = [match for match in labels[other] if met & set(varying(match))]
                if met and not matches:
                    call.facts.freeze(label, "it meets an axis that no weight computes (an input or a constant)")
                how = _how(call, tensor, operands[other])
                for match in matches:
                    call.facts.tie(label, match, how)
                    # Tied labels say the same; the output keeps the one that distinguishes more.
                    smaller = set(varying(match)) < set(varying(label))
                    if smaller or (set(varying(match)) == set(varying(label)) and other > one):
                        covered.append(match)
    call.emit(label for group in labels for label in group if not any(label is done for done in covered))


def _sizes(tensor: Tensor) -> list[int]:
    """The shape of a tensor, with 1 where it was expanded and is constant."""
    return [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def _how(call: Call, first: Tensor, second: Tensor) -> str:
    """How two operands meet; a bias or a scale is neither a sum nor a product of activations."""
    if call.tag(first).parameter or call.tag(second).parameter:
        return ""
    return "sum" if call.name in SUMS else "product" if call.name in PRODUCTS else ""


@rule(*(FACTORIES - {"bernoulli"}))
def factory(call: Call) -> None:
    """Constants and noise: every entry is like every other, so the tensor fits any width that the code gives it."""
    call.emit((), filler=True)


@rule("copy")
def copy(call: Call) -> None:
    """Copy into a tensor: the source's units go where the target's are."""
    target, source = call.tensors[0], call.tensors[-1]
    call.value(source)
    if call.labels(target):
        pointwise(call)
    elif target._is_view():
        call.freeze(call.labels(source), "it is written into part of an unlabelled tensor")
    elif call.tag(source).filler:
        call.emit((), filler=True)
    else:
        call.emit(aligned(label, target.dim()) for label in call.labels(source))


@rule("glu")
def glu(call: Call) -> None:
    """Multiply the first half of an axis with the gates in its second half."""
    tensor = call.input
    axis = call.arguments["dim"] % tensor.dim()
    call.value(tensor)
    outputs = []
    for label in call.labels(tensor):
        if axis in varying(label):
            call.facts.bundle(label, "glu")
            first, second = label.chunk(2, axis)
            call.facts.tie(first, second, "product")
            label = first
        outputs.append(label)
    call.emit(outputs)
