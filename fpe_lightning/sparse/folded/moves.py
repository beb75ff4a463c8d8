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

from fpe_lightning.sparse.folded.codes import decode, encode_codes, has_pruned
from fpe_lightning.sparse.folded.layers import FoldedModule
from fpe_lightning.sparse.moves import Growth, Moves


class FoldMoves(Moves):
    """The moves of a folded weight: a place is (parent, input), and growth also says which child gets it."""

    @override
    def rows(self, module: nn.Module, name: str, most: int) -> list[slice]:
        # As many slices as children: the gradient that is held at a time has the size of the folded weight.
        fold = _module(module).fpe_plan.fold
        parents = len(module.get_parameter(name)) // fold.run
        each = math.ceil(parents / min(fold.children, parents, most))
        size = fold.children * fold.run
        return [slice(start * size, min(start + each, parents) * size) for start in range(0, parents, each)]

    @override
    def dense_shape(self, module: nn.Module, name: str) -> torch.Size:
        shape = module.get_parameter(name).shape
        return torch.Size([_module(module).fpe_plan.fold.children * shape[0], *shape[1:]])

    @override
    def held(self, module: nn.Module, name: str) -> Tensor:
        return _codes(module) < _module(module).fpe_plan.fold.children

    @override
    def growth(self, module: nn.Module, name: str, gradient: Tensor, rows: slice) -> Growth:
        fold = _module(module).fpe_plan.fold
        codes = _codes(module)[rows.start // fold.children : rows.stop // fold.children]
        # (parents, children, run, inputs): of each place the child with the largest gradient, but for its holder.
        score = fold.by_child(gradient.abs())
        holder = codes.view(-1, 1, fold.run, *codes.shape[1:])
        children = torch.arange(fold.children, dtype=torch.uint8, device=codes.device)
        own = holder == children.view(1, -1, *[1] * codes.dim())
        best, child = score.masked_fill(own, -1).max(1)
        return Growth(best.reshape(codes.shape), child.to(torch.uint8).reshape(codes.shape))

    @override
    def move(self, module: nn.Module, name: str, dropped: Tensor, grown: Tensor, growth: Growth | None) -> None:
        layer = _module(module)
        fold = layer.fpe_plan.fold
        assert growth is not None
        assert growth.child is not None
        codes = _codes(module).masked_fill_(dropped, fold.children)
        packed = encode_codes(torch.where(grown, growth.child.to(codes.device), codes), fold)
        # In place: compiled code may hold the tensors.
        layer.fpe_plan.codes.copy_(packed)
        layer.fpe_fold.copy_(packed)
        layer.fpe_plan = replace(layer.fpe_plan, pruned=has_pruned(packed, fold))
        layer.guard_parameters()


def _module(module: nn.Module) -> FoldedModule:
    assert isinstance(module, FoldedModule)
    return module


def _codes(module: nn.Module) -> Tensor:
    """The child of each place, as many as children where it is pruned; uint8 of the folded weight's shape."""
    plan = _module(module).fpe_plan
    return decode(plan.codes, plan.fold, module.get_parameter("weight").shape).clone()
