"""Rewire inside the fold: every place (parent, input) goes to at most one child, and storage stays the parent's.

Pruned places and places just dropped are free. A weight may so move to another input of any child, or to a sibling at
the same input. Gradients are scored parent by parent: no gradient of the wide shape outlives its backward pass.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.folded.codes import decode, has_pruned, with_header
from fpe_lightning.sparse.folded.layers import FoldedModule
from fpe_lightning.sparse.moves import Growth, Moves


class FoldMoves(Moves):
    """The moves of a folded weight: a place is (parent, input), and growth also says which child gets it."""

    @override
    def rows(self, module: nn.Module, name: str, most: int) -> list[slice]:
        # As many slices as codes: the gradient that is held at a time has the size of the folded weight.
        fold = _module(module).fpe_plan.fold
        parents = len(module.get_parameter(name)) // fold.run
        each = math.ceil(parents / min(fold.codes, parents, most))
        size = fold.children * fold.run
        return [slice(start * size, min(start + each, parents) * size) for start in range(0, parents, each)]

    @override
    def dense_shape(self, module: nn.Module, name: str) -> torch.Size:
        return _module(module).fpe_plan.fold.wide_shape(module.get_parameter(name).shape)

    @override
    def held(self, module: nn.Module, name: str) -> Tensor:
        return _codes(module) < _module(module).fpe_plan.fold.codes

    @override
    def growth(self, module: nn.Module, name: str, gradient: Tensor, rows: slice) -> Growth:
        fold = _module(module).fpe_plan.fold
        codes = _codes(module)[rows.start // fold.children : rows.stop // fold.children]
        # Of each place the child with the largest gradient, but for its holder; the first of equal ones.
        holder = fold.places(codes)
        best = torch.full(holder.shape, -1.0, dtype=gradient.dtype, device=gradient.device)
        child = torch.zeros_like(holder)
        for number, part in enumerate(fold.parts(gradient.contiguous())):
            score = part.abs().masked_fill(holder == number, -1)
            child.masked_fill_(score > best, number)
            torch.maximum(best, score, out=best)  # of NaN and a number it is NaN, and nothing moves
        return Growth(best.reshape(codes.shape), child.reshape(codes.shape))

    @override
    def move(self, module: nn.Module, name: str, dropped: Tensor, grown: Tensor, growth: Growth | None) -> None:
        layer = _module(module)
        fold = layer.fpe_plan.fold
        assert growth is not None
        assert growth.child is not None
        codes = _codes(module).masked_fill_(dropped, fold.codes)
        packed = with_header(torch.where(grown, growth.child.to(codes.device), codes), fold)
        # In place: compiled code may hold the tensors.
        layer.fpe_plan.codes.copy_(packed)
        layer.fpe_fold.copy_(packed)
        layer.fpe_plan = replace(layer.fpe_plan, pruned=has_pruned(packed, fold))
        layer.guard_parameters()


def _module(module: nn.Module) -> FoldedModule:
    assert isinstance(module, FoldedModule)
    return module


def _codes(module: nn.Module) -> Tensor:
    """The code of each place: which child holds it, or that it is pruned; uint8 of the folded weight's shape."""
    plan = _module(module).fpe_plan
    return decode(plan.codes, plan.fold, module.get_parameter("weight").shape).clone()
