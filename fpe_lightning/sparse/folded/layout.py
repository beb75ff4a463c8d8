"""The layout ``"folded"``: any disjoint split at the size of its parent's weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.folded.codes import (
    HEADER,
    MOST_CHILDREN,
    bytes_of,
    decode,
    encode,
    find_fold,
    fold_of,
)
from fpe_lightning.sparse.folded.layers import (
    CODES,
    FoldedConv1d,
    FoldedConv2d,
    FoldedConv3d,
    FoldedLinear,
    FoldedModule,
    FoldedTransposed,
)
from fpe_lightning.sparse.folded.moves import FoldMoves
from fpe_lightning.sparse.folded.unfolding import fold_back, unfold_plainly
from fpe_lightning.sparse.layout import Layout, Structure, register_layout

LEAST = 2**18
"""Entries of a weight, at least, by the rule of :func:`pays`: 512 inputs of 512 neurons."""


def pays(shape: torch.Size) -> bool:
    """Whether a weight should be folded rather than masked, for ``layout="by_shape"``: a rule on its shape alone.

    A folded weight takes the memory of its parent at every size, and one optimizer pass instead of ``alpha``. Below
    this size both are small, and the fixed costs of unfolding are what one sees (``docs/results/layouts.md``).

    Args:
        shape: That of the weight before the split.

    Example:
        >>> pays(torch.Size([512, 64])), pays(torch.Size([512, 512]))
        (False, True)
    """
    return shape.numel() >= LEAST


class Folded(Layout):
    """A weight of the parent's shape and a code that names the child of each place."""

    classes = {  # noqa: RUF012 - a constant
        nn.Linear: FoldedLinear,
        nn.Conv1d: FoldedConv1d,
        nn.Conv2d: FoldedConv2d,
        nn.Conv3d: FoldedConv3d,
    }
    transposed = FoldedTransposed
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
    def malformed(self, structure: Structure) -> str | None:
        codes = structure[CODES]
        if codes.is_meta or codes.dtype != torch.uint8 or codes.dim() != 1 or len(codes) <= HEADER:
            return f"its codes are {codes.dtype} {tuple(codes.shape)} on {codes.device}"
        fold = fold_of(codes)
        return None if 2 <= fold.codes <= MOST_CHILDREN and fold.run and fold.column_run else f"its header says {fold}"

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
    def dense_shape(self, module: nn.Module) -> torch.Size:
        assert isinstance(module, FoldedModule)
        return module.fpe_plan.fold.wide_shape(module.get_parameter("weight").shape)

    @override
    def stored_shape(self, structure: Structure, shape: torch.Size) -> torch.Size:
        codes = structure[CODES]
        fold = fold_of(codes)
        steps = fold.children * fold.run, fold.columns * fold.column_run
        uneven = len(shape) < 2 or shape[0] % steps[0] or shape[1] % steps[1]
        if uneven or len(codes) != bytes_of(fold, fold.folded_shape(shape)):
            raise ValueError(f"{len(codes)} bytes of codes with {fold} do not fit its shape {tuple(shape)}")
        folded = fold.folded_shape(shape)
        if int(decode(codes, fold, folded).max()) > fold.codes:
            raise ValueError(f"some code is above {fold.codes}")
        return folded

    @override
    def pack(self, dense: Tensor, structure: Structure) -> Tensor:
        codes = structure[CODES].to(dense.device)
        return fold_back(dense.contiguous(), codes, fold_of(codes))

    @override
    def unpack(self, stored: Tensor, structure: Structure, shape: torch.Size) -> Tensor:
        codes = structure[CODES].to(stored.device)
        return unfold_plainly(stored, codes, fold_of(codes))


FOLDED = Folded()
register_layout("folded", FOLDED)
