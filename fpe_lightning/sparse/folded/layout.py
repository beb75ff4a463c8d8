"""The layout ``"folded"``: any disjoint split at the size of its parent's weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.folded.codes import HEADER, encode, find_fold, fold_of
from fpe_lightning.sparse.folded.layers import (
    CODES,
    FoldedConv1d,
    FoldedConv2d,
    FoldedConv3d,
    FoldedLinear,
    FoldedModule,
)
from fpe_lightning.sparse.folded.moves import FoldMoves
from fpe_lightning.sparse.folded.products import fold_back, unfold_plainly
from fpe_lightning.sparse.layout import Layout, Structure, register_layout


class Folded(Layout):
    """A weight of the parent's shape and a code that names the child of each place."""

    classes = {  # noqa: RUF012 - a constant
        nn.Linear: FoldedLinear,
        nn.Conv1d: FoldedConv1d,
        nn.Conv2d: FoldedConv2d,
        nn.Conv3d: FoldedConv3d,
    }
    buffers = (CODES,)
    packs = True
    moves = FoldMoves()
    kind = "folded"
    phrase = "folded"

    @override
    def fit(self, module: nn.Module, mask: Tensor, rows: int = 0) -> Structure | str:
        if reason := self.cannot_hold(module):
            return reason
        columns = mask.shape[1]
        divisors = [run for run in range(1, columns // 2 + 1) if columns % run == 0]
        fold = find_fold(mask, tuple(dict.fromkeys((rows or 1, 1))), divisors)
        if fold is None:
            return (
                "two children of one neuron share an input, or children of one neuron are not adjacent; a folded "
                "weight holds disjoint partitions"
            )
        return {CODES: encode(mask, fold)}

    @override
    def check(self, module: nn.Module, structure: Structure, mask: Tensor | None) -> str | None:
        if reason := self.cannot_hold(module):
            return reason
        codes = structure[CODES]
        if codes.dtype != torch.uint8 or codes.dim() != 1 or len(codes) <= HEADER or fold_of(codes).codes < 2:
            return f"its codes are {codes.dtype} {tuple(codes.shape)}"
        return None

    @override
    def structure(self, module: nn.Module) -> Structure:
        assert isinstance(module, FoldedModule)
        return {CODES: module.fpe_plan.codes}

    @override
    def mask(self, module: nn.Module) -> Tensor | None:
        assert isinstance(module, FoldedModule)
        return module.fpe_mask_of("weight")

    @override
    def put_on(self, module: nn.Module, structure: Structure) -> None:
        super().put_on(module, structure)
        assert isinstance(module, FoldedModule)
        module.guard_parameters()

    @override
    def stored_shape(self, structure: Structure, shape: torch.Size) -> torch.Size:
        return fold_of(structure[CODES]).folded_shape(shape)

    @override
    def pack(self, dense: Tensor, structure: Structure) -> Tensor:
        codes = structure[CODES].to(dense.device)
        return fold_back(dense.contiguous(), codes, fold_of(codes))

    @override
    def unpack(self, stored: Tensor, structure: Structure, shape: torch.Size) -> Tensor:
        codes = structure[CODES].to(stored.device)
        return unfold_plainly(stored, codes, fold_of(codes))


register_layout("folded", Folded())
