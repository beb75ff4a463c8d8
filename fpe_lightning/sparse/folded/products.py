"""Unfold a weight for one product, and recompute it in the backward pass instead of keeping it.

The wide weight of one layer exists while its product is computed, forward and backward, and never longer. So one
layer's wide matrix is the peak, not the sum over layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fpe_lightning.sparse.folded.codes import Fold, decode, encode  # noqa: F401 - the examples encode


def unfold(folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    """The wide weight that a folded one stands for; zero (or False) where a child has no weight.

    Args:
        folded: ``(parents * run, inputs, ...)``, any dtype.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows fold together.

    Returns:
        ``(parents * children * run, inputs, ...)``.

    Example:
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> unfold(torch.tensor([[1.0, 2.0]]), codes, Fold(2))
        tensor([[1., 0.],
                [0., 2.]])
    """
    wide = folded.new_empty(fold.children * len(folded), *folded.shape[1:])
    source = _bits(_runs(folded.contiguous(), fold))
    code = _runs(decode(codes, fold, folded.shape), fold)
    for child, out in enumerate(_bits(fold.by_child(wide)).unbind(1)):
        torch.bitwise_and(source, _all_ones(code == child, source.dtype), out=out)
    return wide


def fold_back(wide: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    """The inverse of :func:`unfold`: for each place the entry of the child that holds it; zero where it is pruned.

    Example:
        >>> codes = encode(torch.eye(2, dtype=torch.bool), Fold(2))
        >>> fold_back(torch.tensor([[1.0, 9.0], [9.0, 2.0]]), codes, Fold(2))
        tensor([[1., 2.]])
    """
    folded = wide.new_zeros(fold.folded_shape(wide.shape))
    out, code = _bits(_runs(folded, fold)), _runs(decode(codes, fold, folded.shape), fold)
    for child, source in enumerate(_bits(fold.by_child(wide)).unbind(1)):
        out |= source & _all_ones(code == child, source.dtype)
    return folded


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, whose bits a mask can select: a product would turn infinity into NaN."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])


def _all_ones(chosen: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers whose bits are all one where a bool tensor is True, and all zero elsewhere."""
    return chosen.to(dtype).neg_()


def _runs(tensor: Tensor, fold: Fold) -> Tensor:
    return tensor.view(-1, fold.run, *tensor.shape[1:])


class _Unfold(torch.autograd.Function):
    """:func:`unfold`, whose gradient is folded back at once."""

    @staticmethod
    def forward(folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
        return unfold(folded, codes, fold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Fold], output: Tensor) -> None:
        ctx.codes, ctx.fold = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return fold_back(grad.contiguous(), ctx.codes, ctx.fold), None, None


def unfold_plainly(folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    """:func:`unfold` as one expression: a compiler fuses it, and other transforms see through it."""
    children = torch.arange(fold.children, dtype=torch.uint8, device=codes.device)
    children = children.view(1, -1, *[1] * folded.dim())
    code = decode(codes, fold, folded.shape)
    source, places = _runs(folded, fold).unsqueeze(1), _runs(code, fold).unsqueeze(1)
    wide = torch.where(places == children, source, folded.new_zeros(()))
    return wide.reshape(fold.children * len(folded), *folded.shape[1:])


def apply_unfolded(product: Callable[[Tensor], Tensor], folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    """Compute a product with the wide weight, which is freed afterwards and recomputed in the backward pass.

    Args:
        product: Takes the wide weight.
        folded: The folded weight.
        codes: The packed codes of its places (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows fold together.

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
    if not (torch.is_grad_enabled() and folded.requires_grad):
        return _recomputed(product, unfold(folded, codes, fold), folded, codes, fold)
    return _recomputed(product, _Unfold.apply(folded, codes, fold), folded, codes, fold)


def _recomputed(product: Callable[[Tensor], Tensor], wide: Tensor, folded: Tensor, codes: Tensor, fold: Fold) -> Tensor:
    if not torch.is_grad_enabled():
        return product(wide)
    with _not_kept(wide, folded.detach(), codes, fold):
        return product(wide)


@contextmanager
def _not_kept(wide: Tensor, folded: Tensor, codes: Tensor, fold: Fold) -> Iterator[None]:
    """Let autograd keep a note in place of each view of the wide weight, and unfold again when it asks for it."""
    storage, version = wide.untyped_storage().data_ptr(), folded._version

    def note(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() != storage:
            return tensor
        return tensor.shape, tensor.stride(), tensor.storage_offset()

    def again(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if folded._version != version:
            raise RuntimeError(
                "A folded weight was changed in place between the forward and the backward pass; step the optimizer "
                "after the backward pass."
            )
        return unfold(folded, codes, fold).as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(note, again):
        yield
