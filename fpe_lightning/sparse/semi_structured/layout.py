"""The layout ``"semi_structured"``: a masked weight that GPUs multiply by in 2:4 form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.layout import Layout, Structure, register_layout
from fpe_lightning.sparse.masked import mask_of
from fpe_lightning.sparse.semi_structured.format import not_semi_structured
from fpe_lightning.sparse.semi_structured.kernels import no_kernel
from fpe_lightning.sparse.semi_structured.layers import MARK, SemiStructuredLinear, SemiStructuredTransposed


class SemiStructured(Layout):
    """A dense weight with a mask that is 2:4 along rows and columns; its structure is a mark that says so."""

    classes = {nn.Linear: SemiStructuredLinear}  # noqa: RUF012 - a constant
    transposed = SemiStructuredTransposed
    buffers = (MARK,)
    kind = "2:4"
    phrase = "in 2:4 form"

    @override
    def cannot_split(self, alpha: int) -> str | None:
        if alpha <= 2:
            return None
        return (
            f"keeps 2 of 4 inputs, but with alpha={alpha} a child reads 1 of {alpha}: use alpha=2, or "
            'layout="grouped" with partition=fpe.partitions.Shared(groups=4).'
        )

    @override
    def no_kernel(self, device: torch.device) -> str | None:
        return no_kernel(device)

    @override
    def fit(self, module: nn.Module, mask: Tensor, rows: int = 0) -> Structure | str:
        device = mask.device
        if asks_a_gpu(device) and (reason := no_kernel(device)):
            return f"this GPU cannot run the kernels: {reason}"
        if reason := self.cannot_hold(module) or not_semi_structured(mask):
            return reason + ('; use partition="semi_structured"' if "2:4 allows" in reason else "")
        return {MARK: torch.ones((), dtype=torch.bool, device=device)}

    @override
    def malformed(self, structure: Structure) -> str | None:
        mark = structure[MARK]
        if mark.is_meta or mark.dtype != torch.bool or mark.dim() or not bool(mark):
            return f"the mark is {mark.dtype} {tuple(mark.shape)} on {mark.device}, or False"
        return None

    @override
    def check(self, module: nn.Module, structure: Structure, mask: Tensor | None) -> str | None:
        return self.cannot_hold(module) or ("it has no mask" if mask is None else not_semi_structured(mask))


SEMI_STRUCTURED = SemiStructured()
register_layout("semi_structured", SEMI_STRUCTURED)


def asks_a_gpu(device: torch.device) -> bool:
    """Whether a device has to have kernels; a CPU may be where a model is made and not where it is trained.

    Example:
        >>> asks_a_gpu(torch.device("cpu"))
        False
    """
    return device.type == "cuda"


def is_semi_structured(module: nn.Module) -> bool:
    """Whether a module multiplies by its weight in 2:4 form.

    Example:
        >>> is_semi_structured(nn.Linear(4, 2))
        False
    """
    return SEMI_STRUCTURED.holds(module)


def set_semi_structured(module: nn.Module, on: bool = True) -> None:
    """Let a masked linear layer multiply in 2:4 form, or (``on=False``) densely again.

    The parameter and its mask stay the same objects.

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
    if on == is_semi_structured(module):
        return
    if not on:
        SEMI_STRUCTURED.take_off(module)
        return
    mask = mask_of(module)
    structure = "it is dense" if mask is None else SEMI_STRUCTURED.fit(module, mask)
    if isinstance(structure, str):
        raise ValueError(f'The weight cannot be stored in 2:4 form: {structure}; use layout="masked" or "grouped".')
    SEMI_STRUCTURED.put_on(module, structure)
