"""Products with a 2:4 weight on GPUs, as operators that autograd, DDP and ``torch.compile`` see through.

The weight stays a dense parameter and is packed inside of each forward pass. GPUs of compute capability 8.x run
CUTLASS, whose packing follows a fixed pattern; all later ones run cuSPARSELt, as the CUTLASS kernels of torch refuse
them. The operators have shapes of their own, so that a compiler never asks the kernels for theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS


@dataclass(frozen=True)
class Pattern:
    """The places of the non-zeros of a weight, in the form that CUTLASS reads; made once for each mask.

    Attributes:
        threads: uint8, the entries that each thread of the packing kernel keeps.
        places: Places of the packed values of the weight.
        places_t: The same of its transpose.
    """

    threads: Tensor
    places: Tensor
    places_t: Tensor


def no_kernel(device: torch.device) -> str | None:
    """Why a device has no 2:4 kernels, in a few words; None where it has.

    Example:
        >>> no_kernel(torch.device("cpu"))
        'a cpu has none'
    """
    if device.type != "cuda":
        return f"a {device.type} has none"
    if torch.version.hip is not None:
        return "those for AMD GPUs have not been tried"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        found = ".".join(map(str, capability))
        return f"they need compute capability 8.0, and {torch.cuda.get_device_name(device)} has {found}"
    if capability >= (9, 0) and not torch.backends.cusparselt.is_available():
        return "this build of torch has no cuSPARSELt"
    return None


def backend_of(device: torch.device) -> str | None:
    """The library whose kernels a device runs: ``"cutlass"``, ``"cusparselt"``, or None where there is none.

    Example:
        >>> backend_of(torch.device("cpu")) is None
        True
    """
    if no_kernel(device):
        return None
    return "cutlass" if torch.cuda.get_device_capability(device)[0] == 8 else "cusparselt"


def make_pattern(mask: Tensor) -> Pattern:
    """The pattern of a mask that is 2:4 along rows and columns; ``(rows, inputs)``, for CUTLASS."""
    _, places, _, places_t, threads = torch._sparse_semi_structured_tile(
        mask.to(torch.float16), algorithm="", use_cutlass=True
    )
    return Pattern(threads, places, places_t)


@torch.library.custom_op("fpe_lightning::semi_structured_pack", mutates_args=())
def pack(weight: Tensor, threads: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pack a weight and its transpose; with ``threads`` for CUTLASS, without for cuSPARSELt."""
    if threads is not None:
        # One pass over the weight packs both: the forward pass reads rows, the backward pass columns.
        packed, packed_t = torch._sparse_semi_structured_apply(weight, threads)
        return packed, packed_t
    return torch._cslt_compress(weight.contiguous()), torch._cslt_compress(weight.t().contiguous())


@pack.register_fake
def _(weight: Tensor, threads: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, inputs = weight.shape
    if threads is not None:
        return weight.new_empty(rows, inputs // 2), weight.new_empty(inputs, rows // 2)
    # Half of the values, and 2 bits of places for each of them (16 bits wide).
    return weight.new_empty(rows * inputs * 9 // 16), weight.new_empty(rows * inputs * 9 // 16)


@torch.library.custom_op("fpe_lightning::semi_structured_linear", mutates_args=())
def multiply(x: Tensor, packed: Tensor, places: Tensor | None, bias: Tensor | None, rows: int) -> Tensor:
    """``F.linear`` of ``(n, inputs)`` with a packed weight of ``rows`` outputs; torch pads ``n`` as kernels need."""
    kind = SparseSemiStructuredTensorCUSPARSELT if places is None else SparseSemiStructuredTensorCUTLASS
    weight = kind(torch.Size([rows, x.shape[1]]), packed, places, None, None, None)
    return F.linear(x, weight, bias).contiguous()


@multiply.register_fake
def _(x: Tensor, packed: Tensor, places: Tensor | None, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty(x.shape[0], rows)


class _SemiStructuredLinear(torch.autograd.Function):
    """Both products with the weight are 2:4; the gradient of the weight is a dense product."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        threads: Tensor | None,
        places: Tensor | None,
        places_t: Tensor | None,
    ) -> Tensor:
        packed, packed_t = pack(weight, threads)
        ctx.save_for_backward(x, packed_t, places_t)
        ctx.inputs = weight.shape[1]
        return multiply(x, packed, places, bias, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        x, packed_t, places_t = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # The kernels read rows; a gradient that was expanded from a sum has none in memory.
        grad = grad.contiguous()
        dx = multiply(grad, packed_t, places_t, None, ctx.inputs) if wants_x else None
        return dx, grad.t() @ x if wants_weight else None, grad.sum(0) if wants_bias else None, None, None, None


def semi_structured_linear(x: Tensor, weight: Tensor, bias: Tensor | None, pattern: Pattern | None) -> Tensor:
    """``F.linear`` with a 2:4 weight that is packed on the spot.

    Args:
        x: ``(..., inputs)``, float16 or bfloat16.
        weight: Dense ``(rows, inputs)`` of the same dtype, 2:4 along rows and columns.
        bias: ``(rows,)`` or None.
        pattern: From :func:`make_pattern` for CUTLASS, None for cuSPARSELt.

    Returns:
        ``(..., rows)``.
    """
    parts = (None, None, None) if pattern is None else (pattern.threads, pattern.places, pattern.places_t)
    result = _SemiStructuredLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, *parts)
    return result.view(*x.shape[:-1], weight.shape[0])
