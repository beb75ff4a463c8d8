"""What only a GPU can show: the kernels themselves. Run with ``pytest -m gpu``; never run so far, for want of a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.sparse import pack_for_inference, set_semi_structured
from fpe_lightning.sparse.semi_structured.kernels import no_kernel, pack

REASON = no_kernel(torch.device("cuda")) if torch.cuda.is_available() else "there is no GPU"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(REASON is not None, reason=f"needs a GPU with 2:4 kernels: {REASON}"),
]


def split_model(dtype: torch.dtype, width: int = 256) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, width), nn.ReLU(), nn.Linear(width, 100)).to("cuda", dtype)
    x = torch.randn(2048, 512, device="cuda", dtype=dtype)
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition="semi_structured", prune="incoming", layout="semi_structured"),
        example_inputs=x,
    )
    return model, x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 13, 2048])
def test_outputs_and_gradients_equal_the_masked_layer(dtype: torch.dtype, rows: int) -> None:
    ours, x = split_model(dtype)
    assert ours[0].fpe_plan.backend is not None
    masked = copy.deepcopy(ours)
    set_semi_structured(masked[0], on=False)
    inputs = [x[:rows].clone().requires_grad_() for _ in range(2)]
    outputs = [model(given) for model, given in zip((ours, masked), inputs, strict=True)]
    torch.testing.assert_close(*outputs, atol=2e-2, rtol=2e-2)
    for output in outputs:
        output.float().square().mean().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=2e-2, rtol=2e-2)
    for mine, theirs in zip(ours.parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fake_shapes_are_those_of_the_kernels(dtype: torch.dtype) -> None:
    layer = split_model(dtype)[0][0]
    torch.library.opcheck(
        pack, (layer.weight.detach(), None if layer.fpe_plan.pattern is None else layer.fpe_plan.pattern.threads)
    )


def test_it_compiles_as_one_graph() -> None:
    model, x = split_model(torch.bfloat16)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_once_it_computes_the_same(dtype: torch.dtype) -> None:
    model, x = split_model(dtype)
    expected = model(x).detach()
    pack_for_inference(model)
    torch.testing.assert_close(model(x), expected, atol=2e-2, rtol=2e-2)
