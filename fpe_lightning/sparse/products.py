"""A linear layer made of dense blocks: as many multiplications as it has non-zeros, forward and backward."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fpe_lightning.sparse.plan import Block, Plan


def block_linear(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """``F.linear`` with a packed, block structured weight.

    Products write into slices of the result, and read slices of ``x``: no activation is copied, unless the inputs of
    the blocks are scattered, in which case they are gathered once.

    Args:
        x: ``(..., inputs)``.
        packed: ``(non-zeros, 1)``, as from :func:`~fpe_lightning.sparse.blocks.pack`; the dtype of ``x``.
        bias: ``(rows,)`` or None.
        plan: From :func:`~fpe_lightning.sparse.plan.make_plan`, on the device of ``x``.

    Returns:
        ``(..., rows)``.

    Example:
        >>> from fpe_lightning.sparse.plan import make_plan
        >>> plan = make_plan(torch.eye(2, dtype=torch.bool), rows=2)
        >>> block_linear(torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0], [3.0]]), None, plan)
        tensor([[ 2., 30.]])
    """
    if x.shape[-1] != plan.width:
        raise ValueError(f"The layer reads {plan.width} inputs, found an input of shape {tuple(x.shape)}.")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, packed, bias = x.to(dtype), packed.to(dtype), None if bias is None else bias.to(dtype)
    rows = x.reshape(-1, plan.width)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        result = _compose(rows, packed, bias, plan)
    elif len(rows) == 1 and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, packed))):
        result = _single(rows, packed, bias, plan)
    else:
        result = _BlockLinear.apply(rows, packed, bias, plan)
    return result.view(*x.shape[:-1], plan.rows)


def _compose(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The same out of differentiable operators, for compilers and function transforms, which see through them."""
    source = x if plan.gather is None else x.index_select(1, plan.gather)
    outputs = []
    for block in plan.blocks:
        weight = _weight(packed, block)
        products = [
            source.narrow(1, run.source, run.length) @ weight.narrow(1, run.column, run.length).t()
            for run in block.runs
        ]
        outputs.append(functools.reduce(torch.add, products) if products else x.new_zeros(len(x), block.rows))
    result = torch.cat(outputs, dim=1)
    return result if bias is None else result + bias


def _single(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """One row of inputs: the time goes into reading the weight, which a batched product does at full speed."""
    source = x[0].index_select(0, plan.every)
    result = x.new_zeros(plan.rows)
    for batch in plan.batches:
        size = batch.count * batch.fan_in
        # A batch of one would be computed as a matrix times a vector, a third slower: a lone block is cut in two.
        cut = 2 if batch.count == 1 and batch.rows % 2 == 0 else 1
        count, rows = batch.count * cut, batch.rows // cut
        weight = packed.narrow(0, batch.offset, size * batch.rows).view(count, rows, batch.fan_in)
        # Turned around, the vector keeps MKL on its matrix kernel; laid out as a column it takes one five times slower.
        vector = source.narrow(0, batch.source, size).view(batch.count, 1, batch.fan_in).transpose(1, 2)
        out = result.narrow(0, batch.row, count * rows)
        torch.bmm(weight, vector.expand(count, -1, -1), out=out.view(count, rows, 1))
    return (result if bias is None else result.add_(bias)).unsqueeze(0)


def _weight(packed: Tensor, block: Block) -> Tensor:
    return packed.narrow(0, block.offset, block.rows * block.fan_in).view(block.rows, block.fan_in)


class _BlockLinear(torch.autograd.Function):
    """Dense products on slices; every result is written in place, so that nothing is joined by a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        source = x if plan.gather is None else x.index_select(1, plan.gather)
        result = x.new_empty(len(x), plan.rows)
        for block in plan.blocks:
            out = result.narrow(1, block.row, block.rows)
            weight = _weight(packed, block)
            if not block.runs:
                out.zero_() if bias is None else out.copy_(bias.narrow(0, block.row, block.rows))
            for position, run in enumerate(block.runs):
                read = source.narrow(1, run.source, run.length)
                part = weight.narrow(1, run.column, run.length).t()
                if position:
                    out.addmm_(read, part)
                elif bias is None:
                    torch.mm(read, part, out=out)
                else:
                    torch.addmm(bias.narrow(0, block.row, block.rows), read, part, out=out)
        ctx.save_for_backward(x, packed, bias)
        ctx.plan = plan
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, packed, bias = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            wanted = [t for t, needed in zip((x, packed, bias), ctx.needs_input_grad, strict=False) if needed]
            grads = iter(torch.autograd.grad(_compose(x, packed, bias, ctx.plan), wanted, grad, create_graph=True))
            dx, dw, db = (next(grads) if needed else None for needed in ctx.needs_input_grad[:3])
            return dx, dw, db, None
        return *_gradients(x, packed, grad.contiguous(), ctx.plan, ctx.needs_input_grad), None


def _gradients(
    x: Tensor, packed: Tensor, grad: Tensor, plan: Plan, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    source = x if plan.gather is None else x.index_select(1, plan.gather)
    dsource = source.new_zeros(source.shape) if needed[0] else None
    dpacked = torch.empty_like(packed) if needed[1] else None
    for block in plan.blocks:
        dout = grad.narrow(1, block.row, block.rows)
        weight = _weight(packed, block)
        for run in block.runs:
            if dsource is not None:
                dsource.narrow(1, run.source, run.length).addmm_(dout, weight.narrow(1, run.column, run.length))
            if dpacked is not None:
                read = source.narrow(1, run.source, run.length)
                torch.mm(dout.t(), read, out=_weight(dpacked, block).narrow(1, run.column, run.length))
    dx = dsource
    if dsource is not None and plan.gather is not None:
        dx = torch.zeros_like(x)
        # One stretch at a time: no input twice in one call, so that the sum has one order on every device.
        for start, length in plan.scatter:
            dx.index_add_(1, plan.gather.narrow(0, start, length), dsource.narrow(1, start, length))
    return dx, dpacked, grad.sum(0) if needed[2] else None
