"""A linear layer made of dense blocks: as many multiplications as it has non-zeros, forward and backward."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fpe_lightning.sparse.grouped.plan import Batch, Block, Plan

TOGETHER = 2**21
"""Entries that are gathered at a time, at most (but for the inputs of a single block)."""
STRETCHES = 8
"""Most pieces that the rows of a block are cut into for a single row of inputs."""


def block_linear(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """``F.linear`` with a packed, block structured weight.

    No activation is copied, unless the inputs of the blocks are scattered, in which case those of a few blocks at a
    time are gathered.

    Args:
        x: ``(..., inputs)``.
        packed: ``(non-zeros, 1)``, as from :func:`~fpe_lightning.sparse.grouped.blocks.pack`; the dtype of ``x``.
        bias: ``(rows,)`` or None.
        plan: From :func:`~fpe_lightning.sparse.grouped.plan.make_plan`, on the device of ``x``.

    Returns:
        ``(..., rows)``.

    Example:
        >>> from fpe_lightning.sparse.grouped.plan import make_plan
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
    # Compilers and function transforms see operators; a single row is read-bound; all else runs the autograd function.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        result = _compose(rows, packed, bias, plan)
    elif len(rows) == 1 and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, packed))):
        result = _single(rows, packed, bias, plan)
    else:
        result = _BlockLinear.apply(rows, packed, bias, plan)
        # No view, as of F.linear: a change in place, as by a ReLU, would part it from the hooks that FSDP2 attaches.
        return result if x.dim() == 2 else torch.ops.aten._unsafe_view(result, [*x.shape[:-1], plan.rows])
    return result.view(*x.shape[:-1], plan.rows)


def _compose(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The same out of differentiable operators, for compilers and function transforms, which see through them."""
    length = x.shape[0]  # an exported graph keeps it open, where len() would not
    outputs = [_compose_in_place(x, packed, block) for block in plan.blocks] if plan.in_place else []
    row = 0
    for batch in () if plan.in_place else plan.batches:
        # Outputs are joined in the order of rows.
        outputs.append(x.new_zeros(length, batch.row - row))  # blocks without inputs are in no batch
        source = x.index_select(1, _inputs(plan, batch)).view(length, batch.count, batch.fan_in)
        product = torch.einsum("nbf,brf->nbr", source, _weights(packed, batch))
        outputs.append(product.reshape(length, -1))
        row = batch.row + batch.count * batch.rows
    if not plan.in_place:
        outputs.append(x.new_zeros(length, plan.rows - row))
    result = torch.cat(outputs, dim=1)
    return result if bias is None else result + bias


def _compose_in_place(x: Tensor, packed: Tensor, block: Block) -> Tensor:
    weight = _weight(packed, block)
    products = [
        x.narrow(1, run.source, run.length) @ weight.narrow(1, run.column, run.length).t() for run in block.runs
    ]
    return functools.reduce(torch.add, products) if products else x.new_zeros(x.shape[0], block.rows)


def _single(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """One row of inputs: the time goes into reading the weight.

    Each thread takes some members of a batched product, which reads faster than one thin product does. So blocks are
    cut into a few stretches of rows.
    """
    source = x[0].index_select(0, plan.every)
    result = x.new_zeros(plan.rows)
    for batch in plan.batches:
        parts = math.gcd(batch.rows, STRETCHES)
        reads = source.narrow(0, batch.source, batch.count * batch.fan_in).view(batch.count, 1, -1)
        weights = _weights(packed, batch).view(batch.count * parts, batch.rows // parts, batch.fan_in)
        out = result.narrow(0, batch.row, batch.count * batch.rows).view(batch.count * parts, 1, -1)
        torch.bmm(reads.repeat_interleave(parts, dim=0), weights.transpose(1, 2), out=out)
    return (result if bias is None else result.add_(bias)).unsqueeze(0)


def _weight(packed: Tensor, block: Block) -> Tensor:
    return packed.narrow(0, block.offset, block.rows * block.fan_in).view(block.rows, block.fan_in)


def _weights(packed: Tensor, batch: Batch) -> Tensor:
    """The weights of a batch, ``(blocks, rows, fan_in)``."""
    size = batch.count * batch.rows * batch.fan_in
    return packed.narrow(0, batch.offset, size).view(batch.count, batch.rows, batch.fan_in)


def _inputs(plan: Plan, batch: Batch) -> Tensor:
    """Which inputs the blocks of a batch read, one block after the other."""
    return plan.every.narrow(0, batch.source, batch.count * batch.fan_in)


class _BlockLinear(torch.autograd.Function):
    """Dense products, whose results are written in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        # Kept for the backward pass, as transposing the inputs takes as long as gathering those of some blocks.
        inputs_first = None if plan.in_place else x.t().contiguous()
        if inputs_first is None:
            result = _in_place(x, packed, bias, plan)
        else:
            result = _gathered(inputs_first, packed, bias, plan)
        ctx.save_for_backward(x, packed, bias, inputs_first)
        ctx.plan = plan
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, packed, bias, inputs_first = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            wanted = [t for t, needed in zip((x, packed, bias), ctx.needs_input_grad, strict=False) if needed]
            grads = iter(torch.autograd.grad(_compose(x, packed, bias, ctx.plan), wanted, grad, create_graph=True))
            # None where no gradient is wanted, so that the results stand in the places of the arguments.
            dx, dw, db = (next(grads) if needed else None for needed in ctx.needs_input_grad[:3])
            return dx, dw, db, None
        grad = grad.contiguous()
        if inputs_first is None:
            dx, dw = _gradients_in_place(x, packed, grad, ctx.plan, *ctx.needs_input_grad[:2])
        else:
            dx, dw = _gradients_gathered(inputs_first, packed, grad, ctx.plan, *ctx.needs_input_grad[:2])
        return dx, dw, grad.sum(0) if ctx.needs_input_grad[2] else None, None


def _in_place(x: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """Products on slices of ``x``: no activation is copied."""
    result = x.new_empty(len(x), plan.rows)
    for block in plan.blocks:
        out = result.narrow(1, block.row, block.rows)
        weight = _weight(packed, block)
        if not block.runs:  # a block that reads nothing
            out.zero_() if bias is None else out.copy_(bias.narrow(0, block.row, block.rows))
        for position, run in enumerate(block.runs):
            read = x.narrow(1, run.source, run.length)
            part = weight.narrow(1, run.column, run.length).t()
            if position:  # later stretches add to the result of the first one
                out.addmm_(read, part)
            elif bias is None:
                torch.mm(read, part, out=out)
            else:
                torch.addmm(bias.narrow(0, block.row, block.rows), read, part, out=out)
    return result


def _gradients_in_place(
    x: Tensor, packed: Tensor, grad: Tensor, plan: Plan, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    # Where each input is in one block, its gradient is written once and needs no zeros first.
    dx = (x.new_empty(x.shape) if plan.once else x.new_zeros(x.shape)) if for_x else None
    dpacked = torch.empty_like(packed) if for_weight else None
    for block in plan.blocks:
        dout = grad.narrow(1, block.row, block.rows)
        weight = _weight(packed, block)
        for run in block.runs:
            if dx is not None:
                part, out = weight.narrow(1, run.column, run.length), dx.narrow(1, run.source, run.length)
                torch.mm(dout, part, out=out) if plan.once else out.addmm_(dout, part)
            if dpacked is not None:
                read = x.narrow(1, run.source, run.length)
                torch.mm(dout.t(), read, out=_weight(dpacked, block).narrow(1, run.column, run.length))
    return dx, dpacked


def _gathered(inputs_first: Tensor, packed: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """Batched products of gathered inputs.

    Inputs are gathered as rows of the transposed ``x``, which copies whole rows; and a few blocks at a time, so that
    the copies stay in the cache.

    Args:
        inputs_first: ``x`` transposed, ``(inputs, rows of x)``.
        packed: See :func:`block_linear`.
        bias: See :func:`block_linear`.
        plan: See :func:`block_linear`.
    """
    count = inputs_first.shape[1]
    result = inputs_first.new_empty(count, plan.rows)
    if sum(batch.count * batch.rows for batch in plan.batches) < plan.rows:  # blocks without inputs are in no batch
        result.copy_(torch.zeros_like(result) if bias is None else bias.expand_as(result))
    for batch in _portions(plan, count):
        # (blocks, rows of x, fan-in) times (blocks, fan-in, rows).
        product = torch.bmm(_read(inputs_first, plan, batch).transpose(1, 2), _weights(packed, batch).transpose(1, 2))
        out = _of_batch(result, batch)
        if bias is None:
            out.copy_(product)
        else:
            own = bias.narrow(0, batch.row, batch.count * batch.rows).view(batch.count, 1, batch.rows)
            torch.add(product, own, out=out)
    return result


def _gradients_gathered(
    inputs_first: Tensor, packed: Tensor, grad: Tensor, plan: Plan, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    dinputs = torch.zeros_like(inputs_first) if for_x else None
    dpacked = torch.empty_like(packed) if for_weight else None
    for batch in _portions(plan, len(grad)):
        dout = _of_batch(grad, batch).transpose(1, 2)
        if dinputs is not None:
            # Inputs that several blocks read get the sum of their gradients.
            dsource = torch.bmm(_weights(packed, batch).transpose(1, 2), dout)
            # One block at a time: no input twice in one call, so that the sum has one order on every device.
            for index, part in zip(_inputs(plan, batch).view(batch.count, -1), dsource, strict=True):
                dinputs.index_add_(0, index, part)
        if dpacked is not None:
            source = _read(inputs_first, plan, batch).transpose(1, 2)
            torch.bmm(dout, source, out=_weights(dpacked, batch))
    return None if dinputs is None else dinputs.t(), dpacked


def _portions(plan: Plan, rows: int) -> Iterator[Batch]:
    """The batches, cut into those whose inputs have at most ``TOGETHER`` entries."""
    for batch in plan.batches:
        # At least one block at a time, whatever its size.
        count = max(1, TOGETHER // max(1, batch.fan_in * rows))
        for first in range(0, batch.count, count):
            yield replace(
                batch,
                count=min(count, batch.count - first),
                row=batch.row + first * batch.rows,
                offset=batch.offset + first * batch.rows * batch.fan_in,
                source=batch.source + first * batch.fan_in,
            )


def _read(inputs_first: Tensor, plan: Plan, batch: Batch) -> Tensor:
    """The inputs of each block, ``(blocks, fan_in, rows of x)``."""
    return inputs_first.index_select(0, _inputs(plan, batch)).view(batch.count, batch.fan_in, -1)


def _of_batch(result: Tensor, batch: Batch) -> Tensor:
    """The part of ``(rows of x, outputs)`` that the blocks of a batch compute, as ``(blocks, rows of x, outputs)``."""
    part = result.narrow(1, batch.row, batch.count * batch.rows)
    return part.view(len(result), batch.count, batch.rows).transpose(0, 1)
