"""Linear layers with a 2:4 mask that GPUs multiply by in about half of the time: ``layout="semi_structured"``.

The layer is a masked one: a dense parameter, a bool mask, a masked gradient. Only its product differs, and a buffer
``fpe_semi_structured`` says so in every ``state_dict``. Where there is no kernel (a CPU, a GPU before compute
capability 8.0), the same layer multiplies densely, with equal results to rounding.

The kernels have never been run by this project's authors: the tests replace them by CPU code of the same meaning, and
those that need a GPU are marked ``gpu``. By the reports of others, expect a gain only for wide layers in half precision
with more than about 10 thousand rows a step, and no memory saved in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.guard import GuardedModule, mask_name
from fpe_lightning.sparse.masked import MaskedLinear, mask_gradient
from fpe_lightning.sparse.prepared import PreparedModule
from fpe_lightning.sparse.semi_structured.format import DTYPES, not_semi_structured
from fpe_lightning.sparse.semi_structured.kernels import Pattern, backend_of, make_pattern, semi_structured_linear

MARK = "fpe_semi_structured"
"""Name of the buffer that says that a weight is 2:4."""


@dataclass(frozen=True)
class Multiplication:
    """How a device multiplies by a 2:4 weight.

    Attributes:
        backend: The library: ``"cutlass"``, ``"cusparselt"``, or None where the product is dense.
        pattern: Where the non-zeros stand, for CUTLASS alone.
    """

    backend: str | None = None
    pattern: Pattern | None = None


class SemiStructuredModule(PreparedModule, GuardedModule):
    """Common to all 2:4 layers."""

    fpe_needs_mask = (MARK,)
    fpe_semi_structured: Tensor
    fpe_mask_weight: Tensor
    fpe_plan: Multiplication
    weight: Any
    bias: Any

    def neurons_first(self, tensor: Tensor) -> Tensor:
        """The weight, or its mask, with a row for each neuron."""
        return tensor

    @override
    def prepare(self) -> None:
        """Decide how the device that the weight is on now multiplies by it."""
        self.fpe_plan = Multiplication()
        mask = self.fpe_mask_weight
        if mask.is_meta:
            return
        if reason := not_semi_structured(mask):
            raise ValueError(f"The weight is no longer 2:4: {reason}; store it masked before its mask is changed.")
        backend = backend_of(mask.device)
        self.fpe_plan = Multiplication(
            backend, make_pattern(self.neurons_first(mask).contiguous()) if backend == "cutlass" else None
        )

    @override
    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        is_mask = name == mask_name("weight") and tensor is not None
        if is_mask and tensor is not None and (reason := not_semi_structured(tensor)):
            raise ValueError(f"The mask of a 2:4 layer has to be 2:4: {reason}.")
        super().register_buffer(name, tensor, persistent)
        if is_mask:
            self.prepare()

    @override
    def forward(self, input: Tensor) -> Tensor:
        weight = self.neurons_first(mask_gradient(self.weight, self.fpe_mask_weight))
        bias: Tensor | None = self.bias
        # Kernels refuse empty inputs, and transforms cannot look into them.
        if self.fpe_plan.backend is None or not input.numel() or torch._C._are_functorch_transforms_active():
            return F.linear(input, weight, bias)
        kind = input.device.type
        # An operator of our own is on no list of autocast: cast here, as F.linear would.
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if input.dtype not in DTYPES:
            # Training in fp32 would be silently dense; evaluation in fp32 is not worth an error.
            if self.training:
                raise TypeError(
                    f"The 2:4 kernels multiply in float16 or bfloat16, found {input.dtype}: train with "
                    'precision="bf16-mixed", or use layout="masked".'
                )
            return F.linear(input, weight, bias)
        return semi_structured_linear(input, weight, bias, self.fpe_plan.pattern)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, 2:4"


class SemiStructuredLinear(SemiStructuredModule, MaskedLinear):
    """An ``nn.Linear`` whose mask is 2:4 along rows and columns."""

    fpe_plain = nn.Linear


class SemiStructuredTransposed(SemiStructuredModule):
    """The same for a layer whose weight has its inputs first."""

    @override
    def neurons_first(self, tensor: Tensor) -> Tensor:
        return tensor.t()
