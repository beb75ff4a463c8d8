"""Layers that store one weight for each place of their parent: ``layout="folded"``.

Parameter, gradient and optimizer state have the shape of the parent's weight, whatever the partition. The buffer
``fpe_fold`` holds the codes (see :mod:`fpe_lightning.sparse.folded.codes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.folded.codes import Fold, bytes_of, fold_of, has_pruned, unpruned
from fpe_lightning.sparse.folded.products import Show, apply_unfolded, linear
from fpe_lightning.sparse.guard import GuardedModule, guard, show_gradient
from fpe_lightning.sparse.prepared import PreparedModule

CODES = "fpe_fold"
"""Name of the buffer that holds the codes."""


@dataclass(frozen=True)
class FoldPlan:
    """The fold of a layer.

    Attributes:
        fold: Which rows fold together.
        codes: A copy of the buffer. An average of the weights (EMA) may average buffers too, and an average of equal
            integers, rounded down, is another integer.
        pruned: Whether some place is pruned.
    """

    fold: Fold
    codes: Tensor
    pruned: bool


class FoldedModule(GuardedModule, PreparedModule):
    """Common to all folded layers."""

    fpe_hook_sees_dense = False
    fpe_fold: Tensor
    fpe_plan: FoldPlan

    @override
    def prepare(self) -> None:
        if not self.fpe_fold.is_meta:
            fold = fold_of(self.fpe_fold)
            self.fpe_plan = FoldPlan(fold, self.fpe_fold.clone(), has_pruned(self.fpe_fold, fold))

    @override
    def fpe_mask_of(self, name: str) -> Tensor | None:
        """The places that are not pruned, bool of the folded weight's shape; None where none is pruned."""
        plan, weight = self.__dict__.get("fpe_plan"), self._parameters.get("weight")
        if name != "weight" or plan is None or not plan.pruned or weight is None or weight.is_meta:
            return super().fpe_mask_of(name)
        if len(plan.codes) != bytes_of(plan.fold, weight.shape):
            return None
        return unpruned(plan.codes, plan.fold, weight.shape)

    @override
    def guard_parameters(self) -> None:
        """Add the hooks where some place is pruned; to ask for the mask itself would unpack it."""
        plan = self.__dict__.get("fpe_plan")
        if plan is not None and plan.pruned:
            guard(self, "weight")

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._restore_codes()
        return super()._apply(fn, recurse)

    @override
    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._restore_codes()
        super()._save_to_state_dict(*args, **kwargs)

    def _restore_codes(self) -> None:
        plan = self.__dict__.get("fpe_plan")
        if plan is not None:
            self._buffers[CODES] = plan.codes.clone()

    def fpe_weight(self, input: Tensor) -> Tensor:
        """The folded weight, in the precision of autocast where it is on: it unfolds in that precision."""
        weight: Tensor = getattr(self, "weight")  # noqa: B009 - a tensor of other code's, under functional_call
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and weight.is_floating_point():
            weight = weight.to(torch.get_autocast_dtype(kind))
        return weight

    def as_leaf(self, input: torch.fx.Proxy) -> Any:
        """One node of a graph that torch.fx traces, as the plain layer is one."""
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, folded={self.fpe_plan.fold.codes}"

    def product(self, input: Tensor, bias: Tensor | None, inputs_first: bool = False) -> Tensor:
        """The product of a linear layer, in the precision of autocast where it is on."""
        weight, plan = self.fpe_weight(input), self.fpe_plan
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and input.is_floating_point():
            dtype = torch.get_autocast_dtype(kind)
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
        if self.fpe_observed:
            return _observed_linear(input, weight, bias, plan, inputs_first, self.fpe_show)
        return linear(input, weight, bias, plan.codes, plan.fold, plan.pruned, inputs_first)

    def fpe_show(self, rows: slice, gradient: Tensor) -> None:
        """Show the gradient of some rows of the wide weight, which is gone after the backward pass."""
        show_gradient(self, "weight", gradient, rows)


@torch.compiler.disable
def _observed_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, plan: FoldPlan, inputs_first: bool, show: Show
) -> Tensor:
    """The same product, outside of compiled code, in which no gradient of a piece can be seen."""
    return linear(input, weight, bias, plan.codes, plan.fold, plan.pruned, inputs_first, show)


class FoldedLinear(FoldedModule, nn.Linear):
    """An ``nn.Linear`` whose neurons' children share the place of their parent's weight."""

    fpe_plain = nn.Linear

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        return self.product(input, self.bias)


class FoldedTransposed(FoldedModule):
    """The same for a layer whose weight has its inputs first, folded or not."""

    bias: Tensor

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        return self.product(input, self.bias, inputs_first=True)


class _FoldedConv(FoldedModule):
    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        module: Any = self
        plan = self.fpe_plan

        def product(wide: Tensor) -> Tensor:
            out: Tensor = module._conv_forward(input, wide, module.bias)
            return out

        if self.fpe_observed:
            return _observed_product(product, self.fpe_weight(input), plan, self.fpe_show)
        return apply_unfolded(product, self.fpe_weight(input), plan.codes, plan.fold, plan.pruned)


@torch.compiler.disable
def _observed_product(product: Callable[[Tensor], Tensor], weight: Tensor, plan: FoldPlan, show: Show) -> Tensor:
    """The same for other products, whose wide gradient is there as a whole."""

    def shown(wide: Tensor) -> Tensor:
        if wide.requires_grad:
            wide.register_hook(lambda gradient: show(slice(0, len(gradient)), gradient))
        return product(wide)

    return apply_unfolded(shown, weight, plan.codes, plan.fold, plan.pruned)


class FoldedConv1d(_FoldedConv, nn.Conv1d):
    """An ``nn.Conv1d`` whose channels' children share the place of their parent's kernels."""

    fpe_plain = nn.Conv1d


class FoldedConv2d(_FoldedConv, nn.Conv2d):
    """An ``nn.Conv2d`` whose channels' children share the place of their parent's kernels."""

    fpe_plain = nn.Conv2d


class FoldedConv3d(_FoldedConv, nn.Conv3d):
    """An ``nn.Conv3d`` whose channels' children share the place of their parent's kernels."""

    fpe_plain = nn.Conv3d
