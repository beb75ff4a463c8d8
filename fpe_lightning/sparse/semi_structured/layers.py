"""Linear layers with a 2:4 mask that GPUs multiply by in about half of the time: ``layout="semi_structured"``.

The layer is a masked one: a dense parameter, a bool mask, a masked gradient. What is different is how it multiplies,
and a buffer ``weight_semi_structured`` that says so in every ``state_dict``. Where there is no kernel (a CPU, a GPU
before compute capability 8.0), the same layer multiplies densely, with equal results to rounding.

The kernels have never been run by this project's authors: the tests replace them by CPU code of the same meaning, and
those that need a GPU are marked ``gpu``. Reports of others lead one to expect a gain only for wide layers in half
precision with more than about 10 thousand rows a step, and no memory saved in training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.masked import MaskedLinear, mask_gradient, mask_of
from fpe_lightning.sparse.prepared import PreparedModule
from fpe_lightning.sparse.semi_structured.format import DTYPES, not_semi_structured
from fpe_lightning.sparse.semi_structured.kernels import Pattern, backend_of, make_pattern, semi_structured_linear

MARK = "weight_semi_structured"
"""Name of the buffer that says that a weight is 2:4."""


class SemiStructuredLinear(PreparedModule, MaskedLinear):
    """An ``nn.Linear`` whose mask is 2:4 along rows and columns; made by :func:`set_semi_structured`."""

    weight_semi_structured: Tensor
    backend: str | None
    pattern: Pattern | None

    @override
    def prepare(self) -> None:
        """Work out how the device that the weight is on now multiplies by it."""
        self.backend, self.pattern = None, None
        if self.weight.is_meta:
            return
        if reason := not_semi_structured(self.weight_mask):
            raise ValueError(f"The weight is no longer 2:4: {reason}; store it masked before its mask is changed.")
        self.backend = backend_of(self.weight.device)
        self.pattern = make_pattern(self.weight_mask) if self.backend == "cutlass" else None

    @override
    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        if name == "weight_mask" and tensor is not None and (reason := not_semi_structured(tensor)):
            raise ValueError(f"The mask of a 2:4 layer has to be 2:4: {reason}.")
        super().register_buffer(name, tensor, persistent)
        if name == "weight_mask" and tensor is not None:
            self.prepare()

    @override
    def forward(self, input: Tensor) -> Tensor:
        weight = mask_gradient(self.weight, self.weight_mask)
        bias: Tensor | None = self.bias
        if self.backend is None or not input.numel() or torch._C._are_functorch_transforms_active():
            return F.linear(input, weight, bias)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            input, weight, bias = input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        if input.dtype not in DTYPES:
            if self.training:
                raise TypeError(
                    f"The 2:4 kernels multiply in float16 or bfloat16, found {input.dtype}: train with "
                    'precision="bf16-mixed", or use layout="masked".'
                )
            return F.linear(input, weight, bias)
        return semi_structured_linear(input, weight, bias, self.pattern)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, 2:4"


def is_semi_structured(module: nn.Module) -> bool:
    """Whether a module multiplies by its weight in 2:4 form.

    Example:
        >>> is_semi_structured(nn.Linear(4, 2))
        False
    """
    return isinstance(module, SemiStructuredLinear)


def cannot_semi_structure(module: nn.Module, mask: Tensor | None = None) -> str | None:
    """Why a module cannot multiply in 2:4 form, in a few words; None where it can.

    Args:
        module: The module.
        mask: The mask that it is going to have; None for the one that it has.

    Example:
        >>> cannot_semi_structure(nn.Conv2d(4, 2, 1))
        'there is no 2:4 form of Conv2d'
    """
    if type(module) not in (nn.Linear, MaskedLinear, SemiStructuredLinear):
        return f"there is no 2:4 form of {type(module).__name__}"
    weight = module._parameters.get("weight")
    if weight is None or mask_of(module, "bias") is not None:
        return "its weight is computed from other parameters, or its bias is masked"
    mask = mask_of(module) if mask is None else mask
    return "it is dense" if mask is None else not_semi_structured(mask)


def set_semi_structured(module: nn.Module, on: bool = True) -> None:
    """Let a masked linear layer multiply in 2:4 form, or (``on=False``) densely again.

    The parameter, its mask and whatever belongs to them stay the same objects.

    Raises:
        ValueError: If the layer has no 2:4 form, or its mask is not 2:4. Nothing is changed then.

    Example:
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(64, 64)
        >>> pair = torch.tensor([[True, True, False, False], [False, False, True, True]])
        >>> set_mask(layer, "weight", pair.repeat(32, 16))
        >>> set_semi_structured(layer)
        >>> layer
        SemiStructuredLinear(in_features=64, out_features=64, bias=True, 2:4)
    """
    if not on:
        if is_semi_structured(module):
            module._buffers.pop(MARK, None)
            for cached in ("backend", "pattern"):
                module.__dict__.pop(cached, None)
            module.__class__ = MaskedLinear
        return
    if reason := cannot_semi_structure(module):
        raise ValueError(f'The weight cannot be stored in 2:4 form: {reason}; use layout="masked" or "grouped".')
    module.__class__ = SemiStructuredLinear
    assert isinstance(module, SemiStructuredLinear)
    module.register_buffer(MARK, torch.ones((), dtype=torch.bool, device=module.weight.device))
    module.prepare()
