"""Multiply by the wide weight that a folded one stands for, and never keep it.

A linear layer unfolds some rows at a time and multiplies by them before it unfolds the next ones, forward and backward.
So a piece of one layer's wide weight is the peak, not the sum over layers. Other layers unfold the whole weight for
their product, free it, and unfold it again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fpe_lightning.sparse.folded.codes import Fold, decode, encode  # noqa: F401 - the examples encode
from fpe_lightning.sparse.folded.unfolding import PIECE, Unfolding, fold_back, unfold, unfold_plainly

Show = Callable[[slice, Tensor], None]
"""Gets some rows of the wide weight, and their gradient."""


class _Linear(torch.autograd.Function):
    """``F.linear`` with the wide weight, of which one piece at a time is there."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        folded: Tensor,
        bias: Tensor | None,
        form: tuple[Tensor, Fold, bool, bool],
        show: Show | None,
    ) -> Tensor:
        ctx.show = show
        ctx.form, ctx.version, ctx.folded = form, folded._version, folded.detach()
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, folded if ctx.needs_input_grad[0] else None)
        return _linear(input, folded, bias, *form)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[0]:
            _check_version(ctx.folded, ctx.version)
        input, folded = ctx.saved_tensors
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():  # these gradients will be differentiated
            return *_differentiable(grad, input, folded, ctx.form, ctx.folded.shape), bias, None, None
        codes, fold, pruned, inputs_first = ctx.form
        unfolding = Unfolding(ctx.folded.shape, codes, fold, PIECE)
        flat = grad.flatten(0, -2)
        source = None if input is None else input.flatten(0, -2)
        to_weight = None if input is None else torch.empty_like(ctx.folded)
        sum_in = _Sum(grad, len(flat), unfolding.wide[0 if inputs_first else 1])
        for rows, wide_rows in unfolding:
            if folded is not None:
                wide = unfolding.unfold(folded, rows, pruned)
                if inputs_first:
                    torch.mm(flat, wide.t(), out=sum_in.out[:, wide_rows])
                else:
                    sum_in.add(flat[:, wide_rows], wide)
            if to_weight is not None and source is not None:
                first, second = (source[:, wide_rows], flat) if inputs_first else (flat[:, wide_rows], source)
                gradient = first.t() @ second
                if ctx.show is not None:
                    ctx.show(wide_rows, gradient)
                unfolding.fold_back(gradient, rows, pruned, to_weight)
        to_input = None if folded is None else sum_in.out.to(grad.dtype).view(*grad.shape[:-1], -1)
        return to_input, to_weight, bias, None, None


class _Sum:
    """A sum of products, in float32 at least, as one product sums."""

    def __init__(self, like: Tensor, rows: int, columns: int) -> None:
        self.like, self.shape, self.made = like, (rows, columns), False

    @property
    def out(self) -> Tensor:
        """The sum; of the dtype of its terms where it has one term at most."""
        if not self.made:
            self.sum, self.made = self.like.new_empty(self.shape), True
        return self.sum

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add a product."""
        if not self.made:
            self.sum, self.made = a @ b, True
        elif self.sum.dtype == a.dtype and a.dtype in (torch.float32, torch.float64):
            self.sum.addmm_(a, b)
        else:
            self.sum = self.sum.to(torch.promote_types(a.dtype, torch.float32)).add_(a @ b)


def _linear(
    input: Tensor, folded: Tensor, bias: Tensor | None, codes: Tensor, fold: Fold, pruned: bool, inputs_first: bool
) -> Tensor:
    unfolding = Unfolding(folded.shape, codes, fold, PIECE)
    if len(unfolding.starts) == 1:
        wide = unfolding.unfold(folded, slice(0, len(folded)), pruned)
        return F.linear(input, wide.t() if inputs_first else wide, bias)
    flat = input.flatten(0, -2)
    buffer = folded.new_empty(unfolding.rows * fold.run * fold.children, unfolding.wide[1])
    if inputs_first:
        total = _Sum(flat, len(flat), unfolding.wide[1])
        for rows, wide_rows in unfolding:
            total.add(flat[:, wide_rows], unfolding.unfold(folded, rows, pruned, buffer))
        result = total.out if bias is None else total.out.add_(bias)
        return result.to(input.dtype).view(*input.shape[:-1], -1)
    out = input.new_empty(len(flat), unfolding.wide[0])
    for rows, wide_rows in unfolding:
        wide = unfolding.unfold(folded, rows, pruned, buffer)
        if bias is None:
            torch.mm(flat, wide.t(), out=out[:, wide_rows])
        else:
            torch.addmm(bias[wide_rows], flat, wide.t(), out=out[:, wide_rows])
    return out.view(*input.shape[:-1], -1)


def _differentiable(
    grad: Tensor,
    input: Tensor | None,
    folded: Tensor | None,
    form: tuple[Tensor, Fold, bool, bool],
    shape: torch.Size,
) -> tuple[Tensor | None, Tensor | None]:
    codes, fold, _, inputs_first = form
    wide = None if folded is None else unfold_plainly(folded, codes, fold)
    to_input = None if wide is None else grad @ (wide.t() if inputs_first else wide)
    if input is None:
        return to_input, None
    product = grad.flatten(0, -2).t() @ input.flatten(0, -2)
    code = fold.places(decode(codes, fold, shape))
    parts = fold.parts((product.t() if inputs_first else product).contiguous())
    kept = (torch.where(code == child, part, 0) for child, part in enumerate(parts))
    return to_input, sum(kept, torch.zeros((), dtype=product.dtype, device=product.device)).reshape(shape)


def linear(
    input: Tensor,
    folded: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    fold: Fold,
    pruned: bool,
    inputs_first: bool = False,
    show: Show | None = None,
) -> Tensor:
    """``F.linear`` with the wide weight that a folded one stands for.

    Args:
        input: ``(..., inputs * columns)``.
        folded: ``(parents * run, inputs)``, of the input's dtype.
        bias: ``(parents * children * run,)``, or None.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows and columns fold together.
        pruned: Whether some place is pruned.
        inputs_first: Whether the rows of the weight are inputs, and its columns neurons.
        show: Gets the gradient of the wide weight in the backward pass, piece by piece.

    Returns:
        ``(..., parents * children * run)``; differentiable in all tensors, twice too.

    Example:
        >>> folded = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> linear(torch.tensor([[3.0, 4.0]]), folded, None, codes, Fold(2), pruned=False)
        tensor([[3., 8.]], grad_fn=<_LinearBackward>)
    """
    if input.dim() < 2 and show is not None:
        return linear(input.unsqueeze(0), folded, bias, codes, fold, pruned, inputs_first, show).squeeze(0)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or input.dim() < 2:

        def product(input: Tensor, folded: Tensor, bias: Tensor | None) -> Tensor:
            wide = unfold_plainly(folded, codes, fold)
            return F.linear(input, wide.t() if inputs_first else wide, bias)

        return _plainly(product, input, folded, bias)
    if not torch.is_grad_enabled():
        return _linear(input, folded, bias, codes, fold, pruned, inputs_first)
    out: Tensor = _Linear.apply(input, folded, bias, (codes, fold, pruned, inputs_first), show)
    return out


def _plainly(product: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """A product that a compiler sees through. It would keep the wide weight, unless it is told to unfold it again."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        out: Tensor = checkpoint(product, *tensors, use_reentrant=False, preserve_rng_state=False)
        return out
    return product(*tensors)


# Other products: the whole wide weight, unfolded twice.


class _Unfold(torch.autograd.Function):
    """:func:`unfold`, whose gradient is folded back at once."""

    @staticmethod
    def forward(folded: Tensor, codes: Tensor, fold: Fold, pruned: bool) -> Tensor:
        return unfold(folded, codes, fold, pruned)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Fold, bool], output: Tensor) -> None:
        ctx.codes, ctx.fold, ctx.pruned = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return fold_back(grad.contiguous(), ctx.codes, ctx.fold, ctx.pruned), None, None, None


def apply_unfolded(
    product: Callable[[Tensor], Tensor], folded: Tensor, codes: Tensor, fold: Fold, pruned: bool = True
) -> Tensor:
    """Compute a product with the wide weight, which is freed afterwards and recomputed in the backward pass.

    Args:
        product: Takes the wide weight.
        folded: The folded weight.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows and columns fold together.
        pruned: Whether some place is pruned.

    Returns:
        The result of ``product``; differentiable in the folded weight.

    Example:
        >>> folded = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> apply_unfolded(lambda wide: wide.sum(1), folded, codes, Fold(2)).sum().backward()
        >>> folded.grad
        tensor([[1., 1.]])
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _plainly(lambda folded: product(unfold_plainly(folded, codes, fold)), folded)
    if not torch.is_grad_enabled():
        return product(unfold(folded, codes, fold, pruned))
    wide = _Unfold.apply(folded, codes, fold, pruned) if folded.requires_grad else unfold(folded, codes, fold, pruned)
    with _not_kept(wide, folded.detach(), codes, fold, pruned):
        return product(wide)


@contextmanager
def _not_kept(wide: Tensor, folded: Tensor, codes: Tensor, fold: Fold, pruned: bool) -> Iterator[None]:
    """Let autograd keep a note in place of each view of the wide weight, and unfold again when it asks for it."""
    storage, version = wide.untyped_storage().data_ptr(), folded._version

    def note(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != storage:
            return tensor
        return tensor.shape, tensor.stride(), tensor.storage_offset()

    def again(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        _check_version(folded, version)
        return unfold(folded, codes, fold, pruned).as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(note, again):
        yield


def _check_version(folded: Tensor, version: int) -> None:
    if folded._version != version:
        raise RuntimeError(
            "A folded weight was changed in place between the forward and the backward pass; step the optimizer "
            "after the backward pass."
        )
