"""Every pair of layouts computes the same on random structures: outputs and all gradients, in three dtypes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fpe_lightning.sparse import dense_mask, group, layout_of, set_mask, set_semi_structured, structure_of
from fpe_lightning.sparse.grouped.blocks import expand_blocks, unpack
from tests.support.stand_ins_of_kernels import kernels_on_cpu

LAYOUTS = ("masked", "grouped", "semi_structured")
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2}
CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(8, 10, 3, padding=1), (3, 8, 7)),
    "conv2d": (lambda: nn.Conv2d(8, 9, 3, stride=2), (3, 8, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 10, 2), (2, 8, 3, 3, 3)),
}


def two_of_four_in_blocks(seed: int) -> Tensor:
    """Random blocks of two rows, each reading 2 of each 4 inputs and the next one the others: what all layouts hold."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(16, 16, 4, generator=generator).argsort(dim=2) < 2
    return torch.stack([first, ~first], dim=1).view(32, 64)


def blocks_of(rows: int, inputs: int, seed: int) -> Tensor:
    """Random blocks, none of them empty, some inputs read by several and some by none."""
    inside = torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed)) < 0.5
    inside[:, seed % inputs] = True
    return inside


def stored(layer: nn.Module, inputs: Tensor, layout: str, holes: Tensor | None = None) -> nn.Module:
    """A copy of a layer with a structure, in some layout; ``holes`` are single weights that are masked inside of it."""
    twin = copy.deepcopy(layer)
    weight = twin.get_parameter("weight")
    flat = expand_blocks(inputs, len(weight))
    mask = flat.view(*flat.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)
    set_mask(twin, "weight", mask.clone() if holes is None else mask & ~holes)
    if layout == "grouped":
        group(twin, inputs)
    elif layout == "semi_structured":
        set_semi_structured(twin)
    return twin


def function_of(layer: nn.Module, inputs: Tensor, holes: Tensor | None) -> Callable[..., Tensor]:
    """The layer as a function of its input, the weights in its blocks, and its bias; one signature for all layouts."""

    def function(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
        shape = layout_of(layer).dense_shape(layer)
        weight = unpack(packed, inputs, shape)
        weight = weight if holes is None else weight.masked_fill(holes, 0)
        if structure_of(layer) is not None:
            weight = packed if holes is None else packed.masked_fill(~layer.get_buffer("fpe_mask_weight"), 0)
        out: Tensor = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return out

    return function


def arguments(layer: nn.Module, inputs: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Random inputs, weights and biases that want gradients."""
    grouped: Any = stored(layer, inputs, "grouped")
    leaves = (torch.randn(shape), torch.randn_like(grouped.weight) / 4, torch.randn_like(grouped.bias))
    return [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]


def compare(layers: dict[str, nn.Module], given: list[Tensor], inputs: Tensor, holes: Tensor | None) -> None:
    """Compare outputs and gradients of every pair, and in double precision check the gradients themselves."""
    dtype = given[0].dtype
    results = {}
    for name, layer in layers.items():
        function = function_of(layer, inputs, holes)
        out = function(*given)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
        results[name] = (out.detach(), *torch.autograd.grad(out, given, upstream))
        if dtype == torch.float64:
            assert torch.autograd.gradcheck(function, given, fast_mode=True)
    for one, other in itertools.combinations(results, 2):
        for ours, theirs in zip(results[one], results[other], strict=True):
            size = float(theirs.abs().max().clamp(min=1))
            torch.testing.assert_close(
                ours, theirs, atol=CLOSE[dtype] * size, rtol=0, msg=lambda m, pair=f"{one}, {other}": f"{pair}: {m}"
            )


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        (torch.float32, None),
        (torch.float64, None),
        (torch.bfloat16, None),
        (torch.bfloat16, "cutlass"),
        (torch.bfloat16, "cusparselt"),
    ],
)
def test_every_pair_of_layouts(dtype: torch.dtype, backend: str | None, seed: int, holes: bool) -> None:
    torch.manual_seed(seed)
    layer, inputs = nn.Linear(64, 64).to(dtype), two_of_four_in_blocks(seed)
    missing = torch.rand(64, 64) < 0.2 if holes else None
    with nullcontext() if backend is None else kernels_on_cpu(backend):
        layers = {layout: stored(layer, inputs, layout, missing) for layout in LAYOUTS}
        masks = [dense_mask(each) for each in layers.values()]
        assert all(mask is not None and torch.equal(mask, masks[0]) for mask in masks)
        compare(layers, arguments(layer, inputs, (6, 64), dtype), inputs, missing)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_masked_and_grouped_convolutions(kind: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    make, shape = CONVOLUTIONS[kind]
    layer, inputs = make().to(dtype), blocks_of(3, 8, seed)
    layers = {layout: stored(layer, inputs, layout) for layout in ("masked", "grouped")}
    compare(layers, arguments(layer, inputs, shape, dtype), inputs, None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", CLOSE)
def test_masked_and_grouped_linear_layers_of_any_structure(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    layer, inputs = nn.Linear(40, 13).to(dtype), blocks_of(1 + 3 * seed, 40, seed)
    layers = {layout: stored(layer, inputs, layout) for layout in ("masked", "grouped")}
    compare(layers, arguments(layer, inputs, (2, 3, 40), dtype), inputs, None)
