"""Block products give the outputs and gradients of the masked layer, in every dtype and under every transform."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fpe_lightning.sparse.grouped.blocks import expand_blocks, pack, unpack
from fpe_lightning.sparse.grouped.plan import Plan, make_plan
from fpe_lightning.sparse.grouped.products import block_linear

ROWS, INPUTS = 13, 64


def structure(kind: str) -> Tensor:
    """Inputs in one stretch, in two, and scattered with one block that reads nothing."""
    inputs = torch.zeros(4, INPUTS, dtype=torch.bool)
    if kind == "contiguous":
        for block in range(4):
            inputs[block, 16 * block : 16 * block + 16] = True
    elif kind == "wrapped":
        for block in range(4):
            inputs[block, (torch.arange(40) + 20 * block) % INPUTS] = True
    else:
        inputs = torch.rand(4, INPUTS, generator=torch.Generator().manual_seed(0)) < 0.4
        inputs[2] = False
        inputs[3] = inputs[1]
    return inputs


KINDS = ("contiguous", "wrapped", "scattered")


def case(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Plan]:
    torch.manual_seed(0)
    inputs = structure(kind)
    dense = torch.randn(ROWS, INPUTS, dtype=dtype).masked_fill(~expand_blocks(inputs, ROWS), 0)
    x, bias = torch.randn(5, INPUTS, dtype=dtype), torch.randn(ROWS, dtype=dtype)
    return x, dense, bias, inputs, make_plan(inputs, ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_stretches_are_read_in_place_and_scattered_inputs_gathered(kind: str) -> None:
    assert make_plan(structure(kind), ROWS).in_place == (kind != "scattered")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.1)])
def test_outputs_and_gradients_equal_the_dense_layer(kind: str, dtype: torch.dtype, close: float) -> None:
    x, dense, bias, inputs, plan = case(kind, dtype)
    leaves = [x.requires_grad_(), dense.requires_grad_(), bias.requires_grad_()]
    packed = pack(dense.detach(), inputs).requires_grad_()
    out, reference = block_linear(x, packed, bias, plan), F.linear(x, dense, bias)
    upstream = torch.randn_like(reference)
    ours = torch.autograd.grad(out, [x, packed, bias], upstream)
    theirs = torch.autograd.grad(reference, leaves, upstream)
    torch.testing.assert_close(out, reference, atol=close, rtol=close)
    torch.testing.assert_close(ours[0], theirs[0], atol=close, rtol=close)
    masked = theirs[1].masked_fill(~expand_blocks(inputs, ROWS), 0)
    torch.testing.assert_close(unpack(ours[1], inputs, dense.shape), masked, atol=close, rtol=close)
    torch.testing.assert_close(ours[2], theirs[2], atol=close, rtol=close)


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives(kind: str) -> None:
    x, dense, bias, inputs, plan = case(kind, torch.float64)
    leaves = (x[:2].clone().requires_grad_(), pack(dense, inputs).requires_grad_(), bias.requires_grad_())

    def layer(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
        return block_linear(x, packed, bias, plan).tanh()

    assert torch.autograd.gradcheck(layer, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, leaves, fast_mode=True)


def test_leading_axes_expanded_gradients_and_no_bias() -> None:
    x, dense, _, inputs, plan = case("contiguous", torch.float32)
    packed = pack(dense, inputs).requires_grad_()
    out = block_linear(x.view(1, 5, INPUTS).expand(2, 5, INPUTS), packed, None, plan)
    torch.testing.assert_close(out, F.linear(x, dense).expand(2, 5, ROWS))
    out.sum().backward()
    assert packed.grad is not None
    reference = 2 * x.sum(0).expand(ROWS, INPUTS).masked_fill(~expand_blocks(inputs, ROWS), 0)
    torch.testing.assert_close(unpack(packed.grad, inputs, dense.shape), reference)
    assert block_linear(x[0], packed, None, plan).shape == (ROWS,)
    assert block_linear(x[:0], packed, None, plan).shape == (0, ROWS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_row_without_gradients_is_products_with_vectors(kind: str) -> None:
    x, dense, bias, inputs, plan = case(kind, torch.float32)
    packed = torch.cat([torch.zeros(3, 1), pack(dense, inputs)])[
        3:
    ]  # a view that does not begin where its storage does
    for given in (bias, None):
        torch.testing.assert_close(block_linear(x[:1], packed, given, plan), F.linear(x[:1], dense, given))
    assert sum(batch.count for batch in plan.batches) == int(inputs.any(1).sum())  # a block without inputs is in none


def test_blocks_of_one_shape_in_a_row_make_one_batch() -> None:
    inputs = torch.zeros(6, 12, dtype=torch.bool)
    for block in range(6):
        inputs[block, : 4 + block // 4] = True
    batches = make_plan(inputs, 12).batches
    assert [(batch.count, batch.fan_in, batch.row, batch.source) for batch in batches] == [(4, 4, 0, 0), (2, 5, 8, 16)]


def test_autocast_computes_in_the_lower_dtype_and_keeps_gradients_in_the_parameters() -> None:
    x, dense, bias, inputs, plan = case("scattered", torch.float32)
    packed = pack(dense, inputs).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = block_linear(x, packed, bias, plan)
        reference = F.linear(x, dense, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, reference, atol=0.1, rtol=0.1)
    out.float().sum().backward()
    assert packed.grad is not None
    assert packed.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms_see_through(kind: str) -> None:
    x, dense, bias, inputs, plan = case(kind, torch.float64)
    packed = pack(dense, inputs)

    def loss(packed: Tensor, x: Tensor) -> Tensor:
        return block_linear(x, packed, bias, plan).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(packed, x)
    whole = torch.func.grad(loss)(packed, x)
    torch.testing.assert_close(each.sum(0), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_into_one_graph(kind: str) -> None:
    x, dense, bias, inputs, plan = case(kind, torch.float32)
    packed = pack(dense, inputs).requires_grad_()
    compiled = torch.compile(lambda x, packed: block_linear(x, packed, bias, plan), fullgraph=True)
    out = compiled(x, packed)
    torch.testing.assert_close(out, F.linear(x, dense, bias))
    out.sum().backward()
    eager = torch.autograd.grad(block_linear(x, packed, bias, plan).sum(), packed)[0]
    torch.testing.assert_close(packed.grad, eager)


def test_a_wrong_input_is_named() -> None:
    x, dense, bias, inputs, plan = case("contiguous", torch.float32)
    with pytest.raises(ValueError, match=r"reads 64 inputs, found an input of shape \(5, 8\)"):
        block_linear(x[:, :8], pack(dense, inputs), bias, plan)
