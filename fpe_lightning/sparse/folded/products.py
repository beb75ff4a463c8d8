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

from fpe_lightning.sparse.folded.codes import Fold, decode, encode  # noqa: F401 - the examples encode
from fpe_lightning.sparse.guard import zero_masked_

PIECE = 2**20
"""Entries of the wide weight that a CPU unfolds at a time: they stay in its cache until they are multiplied by."""


Show = Callable[[slice, Tensor], None]
"""Gets some rows of the wide weight, and their gradient."""


class Unfolding:
    """Where the places of a folded weight stand in the wide one, a piece after the other.

    Args:
        shape: Of the folded weight, ``(parents * run, inputs, ...)``.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows and columns fold together.
        piece: Entries of the wide weight that are unfolded together; 0 for all.
    """

    def __init__(self, shape: torch.Size, codes: Tensor, fold: Fold, piece: int = 0) -> None:
        self.shape, self.wide, self.fold = shape, fold.wide_shape(shape), fold
        self.units = shape[0] // fold.run
        self.code = decode(codes, fold, shape).view(self.units, -1)
        # The place of the first child within the wide rows of one parent, and the step from there to each other child.
        inside = torch.arange(self.wide[1:].numel() * fold.children * fold.run, device=codes.device)
        parts = list(fold.parts(inside.view(fold.children * fold.run, *self.wide[1:])))
        self.first = parts[0].reshape(-1)
        steps = [part.flatten()[0] for part in parts]
        self.steps = torch.stack([*steps, torch.zeros_like(steps[0])])  # a pruned place is zero, wherever it goes
        rows = max(1, piece // max(1, len(inside))) if piece and codes.device.type == "cpu" else self.units
        self.starts = range(0, self.units, rows)
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """The folded rows and the wide rows of each piece."""
        for start in self.starts:
            end = min(start + self.rows, self.units)
            per_unit = self.fold.run
            wide = per_unit * self.fold.children
            yield slice(start * per_unit, end * per_unit), slice(start * wide, end * wide)

    def _index(self, rows: slice) -> tuple[Tensor, Tensor]:
        code = self.code[rows.start // self.fold.run : rows.stop // self.fold.run]
        index = self.steps.index_select(0, code.reshape(-1).to(torch.int32)).view(code.shape).add_(self.first)
        return index, code

    def unfold(self, folded: Tensor, rows: slice, pruned: bool, out: Tensor | None = None) -> Tensor:
        """The wide rows that some rows of a folded weight stand for."""
        index, code = self._index(rows)
        source = folded[rows].reshape(len(code), -1)
        if pruned:
            source = source.clone()
            zero_masked_(source, code < self.fold.codes)
        shape = torch.Size([(rows.stop - rows.start) * self.fold.children, *self.wide[1:]])
        wide = folded.new_empty(shape) if out is None else out[: shape[0]]
        wide.zero_().view(len(code), -1).scatter_(1, index, source)
        return wide

    def fold_back(self, wide: Tensor, rows: slice, pruned: bool, out: Tensor) -> None:
        """Put the entry of the child that holds each place into some rows of a folded weight, and zero where pruned."""
        index, code = self._index(rows)
        torch.gather(wide.view(len(code), -1), 1, index, out=out[rows].view(len(code), -1))
        if pruned:
            zero_masked_(out[rows].view(len(code), -1), code < self.fold.codes)


def unfold(folded: Tensor, codes: Tensor, fold: Fold, pruned: bool = True) -> Tensor:
    """The wide weight that a folded one stands for; zero (or False) where a child has no weight.

    Args:
        folded: ``(parents * run, inputs, ...)``, any dtype.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows and columns fold together.
        pruned: Whether some place is pruned.

    Returns:
        ``(parents * children * run, inputs * columns, ...)``.

    Example:
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> unfold(torch.tensor([[1.0, 2.0]]), codes, Fold(2))
        tensor([[1., 0.],
                [0., 2.]])
    """
    unfolding = Unfolding(folded.shape, codes, fold, PIECE)
    wide = folded.new_empty(unfolding.wide)
    for rows, wide_rows in unfolding:
        unfolding.unfold(folded, rows, pruned, out=wide[wide_rows])
    return wide


def fold_back(wide: Tensor, codes: Tensor, fold: Fold, pruned: bool = True) -> Tensor:
    """The inverse of :func:`unfold`: for each place the entry of the child that holds it; zero where it is pruned.

    Example:
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> fold_back(torch.tensor([[1.0, 9.0], [9.0, 2.0]]), codes, Fold(2))
        tensor([[1., 2.]])
    """
    folded = wide.new_empty(fold.folded_shape(wide.shape))
    unfolding = Unfolding(folded.shape, codes, fold, PIECE)
    for rows, wide_rows in unfolding:
        unfolding.fold_back(wide[wide_rows], rows, pruned, folded)
    return folded


def unfold_plainly(folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    """:func:`unfold` as one expression: a compiler fuses it, and other transforms see through it."""
    number = torch.arange(fold.codes, dtype=torch.uint8, device=codes.device)
    number = number.view(1, fold.children, 1, 1, fold.columns, *[1] * (folded.dim() - 1))
    code = fold.places(decode(codes, fold, folded.shape)).unsqueeze(1).unsqueeze(4)
    source = fold.places(folded).unsqueeze(1).unsqueeze(4)
    return torch.where(code == number, source, folded.new_zeros(())).reshape(fold.wide_shape(folded.shape))


class _Linear(torch.autograd.Function):
    """``F.linear`` with the wide weight, of which one piece at a time is there."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        folded: Tensor,
        bias: Tensor | None,
        codes: Tensor,
        fold: Fold,
        pruned: bool,
        show: Show | None,
    ) -> Tensor:
        ctx.show = show
        ctx.codes, ctx.fold, ctx.pruned, ctx.version = codes, fold, pruned, folded._version
        ctx.folded = folded.detach()
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, folded if ctx.needs_input_grad[0] else None)
        return _linear(input, folded, bias, codes, fold, pruned)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[0]:
            _check_version(ctx.folded, ctx.version)
        input, folded = ctx.saved_tensors
        fold, codes = ctx.fold, ctx.codes
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        if torch.is_grad_enabled():  # these gradients will be differentiated
            return *_differentiable(grad, input, folded, codes, fold, ctx.folded.shape), bias, None, None, None, None
        unfolding = Unfolding(ctx.folded.shape, codes, fold, PIECE)
        flat = grad.flatten(0, -2)
        to_input = None if folded is None else grad.new_zeros(len(flat), unfolding.wide[1], dtype=_sums_in(grad))
        to_weight = None if input is None else torch.empty_like(ctx.folded)
        source = None if input is None else input.flatten(0, -2)
        for rows, wide_rows in unfolding:
            piece = flat[:, wide_rows]
            if to_input is not None:
                _add_product(to_input, piece, unfolding.unfold(ctx.folded, rows, ctx.pruned), len(unfolding.starts))
            if to_weight is not None and source is not None:
                wide = piece.t() @ source
                if ctx.show is not None:
                    ctx.show(wide_rows, wide)
                unfolding.fold_back(wide, rows, ctx.pruned, to_weight)
        if to_input is not None:
            to_input = to_input.to(grad.dtype).view(*grad.shape[:-1], -1)
        return to_input, to_weight, bias, None, None, None, None


def _sums_in(grad: Tensor) -> torch.dtype:
    """Several products are summed in float32 at least, as one product is."""
    return torch.promote_types(grad.dtype, torch.float32) if grad.is_floating_point() else grad.dtype


def _add_product(out: Tensor, a: Tensor, b: Tensor, pieces: int) -> None:
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, beta=0 if pieces == 1 else 1, out=out)
    elif pieces == 1:
        out.copy_(a @ b)
    else:
        out += a @ b


def _linear(input: Tensor, folded: Tensor, bias: Tensor | None, codes: Tensor, fold: Fold, pruned: bool) -> Tensor:
    unfolding = Unfolding(folded.shape, codes, fold, PIECE)
    if len(unfolding.starts) == 1:
        return F.linear(input, unfolding.unfold(folded, slice(0, len(folded)), pruned), bias)
    flat = input.flatten(0, -2)
    out = input.new_empty(len(flat), unfolding.wide[0])
    buffer = folded.new_empty(unfolding.rows * fold.run * fold.children, unfolding.wide[1])
    for rows, wide_rows in unfolding:
        wide = unfolding.unfold(folded, rows, pruned, buffer)
        if bias is None:
            torch.mm(flat, wide.t(), out=out[:, wide_rows])
        else:
            torch.addmm(bias[wide_rows], flat, wide.t(), out=out[:, wide_rows])
    return out.view(*input.shape[:-1], -1)


def _differentiable(
    grad: Tensor, input: Tensor | None, folded: Tensor | None, codes: Tensor, fold: Fold, shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    to_input = None if folded is None else grad @ unfold_plainly(folded, codes, fold)
    if input is None:
        return to_input, None
    wide = grad.flatten(0, -2).t() @ input.flatten(0, -2)
    code = fold.places(decode(codes, fold, shape))
    parts = (torch.where(code == child, part, 0) for child, part in enumerate(fold.parts(wide)))
    return to_input, sum(parts, torch.zeros((), dtype=wide.dtype, device=wide.device)).reshape(shape)


def linear(
    input: Tensor,
    folded: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    fold: Fold,
    pruned: bool,
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
        return linear(input.unsqueeze(0), folded, bias, codes, fold, pruned, show).squeeze(0)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or input.dim() < 2:
        return F.linear(input, unfold_plainly(folded, codes, fold), bias)
    if not torch.is_grad_enabled():
        return _linear(input, folded, bias, codes, fold, pruned)
    out: Tensor = _Linear.apply(input, folded, bias, codes, fold, pruned, show)
    return out


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
        return product(unfold_plainly(folded, codes, fold))
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
