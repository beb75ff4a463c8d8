"""2:4 layers equal the masked ones they are made of, through stand-ins for the kernels that only GPUs have."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fpe_lightning.partitions import SemiStructured
from fpe_lightning.sparse import check_masks, set_mask
from fpe_lightning.sparse.masked import MaskedLinear, mask_of
from fpe_lightning.sparse.semi_structured.format import not_semi_structured
from fpe_lightning.sparse.semi_structured.kernels import multiply, no_kernel, pack
from fpe_lightning.sparse.semi_structured.layers import SemiStructuredLinear
from fpe_lightning.sparse.semi_structured.layout import SEMI_STRUCTURED, is_semi_structured, set_semi_structured
from tests.support.stand_ins_of_kernels import kernels_on_cpu

BACKENDS = ("cutlass", "cusparselt")


def two_of_four(rows: int = 128, inputs: int = 64, seed: int = 0) -> Tensor:
    """A mask as a split makes it: adjacent children share 2 + 2 of each 4 inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight, alive = torch.ones(rows // 2, inputs, 1), torch.ones(rows // 2, inputs, dtype=torch.bool)
    child = SemiStructured()(weight, alive, 2, generator)
    return torch.stack([child == 0, child == 1], dim=1).view(rows, inputs)


def masked_layer(dtype: torch.dtype = torch.bfloat16, holes: bool = False) -> MaskedLinear:
    torch.manual_seed(0)
    layer = nn.Linear(64, 128).to(dtype)
    mask = two_of_four()
    set_mask(layer, "weight", mask & (torch.rand(mask.shape) < 0.8) if holes else mask)
    assert isinstance(layer, MaskedLinear)
    return layer


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels_on_cpu(request.param):
        yield request.param


def semi_structured(layer: nn.Module) -> SemiStructuredLinear:
    twin = copy.deepcopy(layer)
    set_semi_structured(twin)
    assert isinstance(twin, SemiStructuredLinear)
    return twin


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("shape", [(16, 64), (5, 64), (2, 3, 64), (64,)])
def test_outputs_and_gradients_equal_the_masked_layer(
    backend: str, dtype: torch.dtype, holes: bool, shape: tuple[int, ...]
) -> None:
    masked = masked_layer(dtype, holes)
    ours = semi_structured(masked)
    assert ours.fpe_plan.backend == backend
    x = torch.randn(shape, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(given) for layer, given in zip((ours, masked), inputs, strict=True)]
    torch.testing.assert_close(*outputs, atol=2e-2, rtol=2e-2)
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=5e-2, rtol=2e-2)
    torch.testing.assert_close(ours.weight.grad, masked.weight.grad, atol=5e-2, rtol=2e-2)
    torch.testing.assert_close(ours.bias.grad, masked.bias.grad, atol=5e-2, rtol=2e-2)
    assert not ours.weight.grad[~ours.fpe_mask_weight].any()


def test_the_kernels_are_what_computes(backend: str) -> None:
    layer, calls = semi_structured(masked_layer()), []
    with patch("fpe_lightning.sparse.semi_structured.kernels.multiply", lambda *a: calls.append(a) or multiply(*a)):
        layer(torch.randn(8, 64, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
    assert len(calls) == 2  # the forward product, and the gradient of the inputs


def test_mixed_precision_trains_fp32_weights(backend: str) -> None:
    masked = masked_layer(torch.float32)
    ours = semi_structured(masked)
    x = torch.randn(8, 64)
    for layer in (ours, masked):
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().square().sum().backward()
    assert ours.weight.grad.dtype == torch.float32
    torch.testing.assert_close(ours.weight.grad, masked.weight.grad, atol=1e-1, rtol=5e-2)


def test_masked_weights_stay_zero_in_training(backend: str) -> None:
    layer = semi_structured(masked_layer(holes=True))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    nonzeros = int(layer.weight.count_nonzero())
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 64, dtype=torch.bfloat16)).square().sum().backward()
        optimizer.step()
    check_masks(layer)
    assert int(layer.weight.count_nonzero()) == nonzeros


def test_it_compiles_as_one_graph(backend: str) -> None:
    layer = semi_structured(masked_layer())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = [torch.randn(8, 64, dtype=torch.bfloat16).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    gradients = []
    for function, x in ((compiled, inputs[0]), (layer, inputs[1])):
        layer.zero_grad()
        function(x).float().square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("rows", [1, 13, 16])
def test_shapes_on_fake_gpu_tensors(threads: bool, rows: int) -> None:
    with FakeTensorMode():
        weight = torch.empty(128, 64, dtype=torch.float16, device="cuda")
        mask = torch.empty(16, 8, 4, 2, dtype=torch.uint8, device="cuda") if threads else None
        packed, packed_t = pack(weight, mask)
        places = torch.empty(128, 4, dtype=torch.int16, device="cuda") if threads else None
        out = multiply(torch.empty(rows, 64, dtype=torch.float16, device="cuda"), packed, places, None, 128)
        dx = multiply(torch.empty(rows, 128, dtype=torch.float16, device="cuda"), packed_t, places, None, 64)
    assert out.shape == (rows, 128)
    assert dx.shape == (rows, 64)
    assert out.device.type == dx.device.type == packed.device.type == "cuda"
    assert packed.numel() == packed_t.numel() == (128 * 64 // 2 if threads else 128 * 64 * 9 // 16)


@pytest.mark.parametrize("threads", [False, True])
def test_fake_shapes_are_those_of_the_operators(backend: str, threads: bool) -> None:
    layer = semi_structured(masked_layer())
    given = None if layer.fpe_plan.pattern is None else layer.fpe_plan.pattern.threads
    real = pack(layer.weight.detach(), given)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = pack(torch.empty(128, 64, dtype=torch.bfloat16), None if given is None else torch.empty_like(given))
    assert [tensor.shape for tensor in real] == [tensor.shape for tensor in fake]


def test_without_kernels_it_multiplies_densely() -> None:
    masked = masked_layer(torch.float32)
    ours, x = semi_structured(masked), torch.randn(8, 64)
    assert ours.fpe_plan.backend is None
    assert torch.equal(ours(x), masked(x))


def test_copies_and_files_keep_the_form(backend: str) -> None:
    layer = semi_structured(masked_layer())
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert is_semi_structured(twin)
        assert torch.equal(twin(x), expected)
    assert layer.to("meta").weight.is_meta


def test_another_mask_is_loaded_and_computed_with(backend: str) -> None:
    first, second = semi_structured(masked_layer()), masked_layer()
    set_mask(second, "weight", two_of_four(seed=1))
    second = semi_structured(second)
    x = torch.randn(8, 64, dtype=torch.bfloat16)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_taking_the_form_away_leaves_the_masked_layer() -> None:
    masked = masked_layer()
    ours = semi_structured(masked)
    weight = ours.weight
    set_semi_structured(ours, on=False)
    assert type(ours) is MaskedLinear
    assert ours.weight is weight
    assert list(ours.state_dict()) == list(masked.state_dict())
    again = semi_structured(masked)
    set_mask(again, "weight", None)
    assert type(again) is nn.Linear
    assert list(again.state_dict()) == ["weight", "bias"]
    assert mask_of(again) is None


def test_a_split_of_adjacent_children_is_two_of_four_both_ways() -> None:
    mask = two_of_four()
    tiles = mask.view(32, 4, 16, 4)
    assert (tiles.sum(3) == 2).all()
    assert (tiles.sum(1) == 2).all()
    assert not_semi_structured(mask) is None
    apart = torch.cat([mask[::2], mask[1::2]])  # children in two halves: columns no longer fit
    assert "column" in str(not_semi_structured(apart))
    assert not_semi_structured(apart, columns=False) is None


def test_what_is_not_semi_structured_is_refused_and_nothing_changes() -> None:
    layer = masked_layer()
    set_mask(layer, "weight", torch.ones(128, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="row 0 keeps 4 of the 4 inputs 0 to 3, and 2:4 allows 2"):
        set_semi_structured(layer)
    assert type(layer) is MaskedLinear
    layer = semi_structured(masked_layer())
    before = layer.fpe_mask_weight
    with pytest.raises(ValueError, match="has to be 2:4"):
        set_mask(layer, "weight", torch.ones(128, 64, dtype=torch.bool))
    assert layer.fpe_mask_weight is before
    state = layer.state_dict() | {"fpe_mask_weight": torch.ones(128, 64, dtype=torch.bool)}
    with pytest.raises(ValueError, match="no longer 2:4"):
        layer.load_state_dict(state)


def test_shapes_kinds_and_dtypes_without_a_kernel_are_named(backend: str) -> None:
    small = nn.Linear(32, 128)
    assert "multiples of 64" in str(SEMI_STRUCTURED.fit(small, torch.zeros(128, 32, dtype=torch.bool)))
    assert SEMI_STRUCTURED.cannot_hold(nn.Conv2d(64, 64, 1)) == "there is no 2:4 form of Conv2d"
    with pytest.raises(ValueError, match="cannot be stored in 2:4 form: it is dense"):
        set_semi_structured(nn.Linear(64, 64))
    layer = semi_structured(masked_layer(torch.float32))
    with pytest.raises(TypeError, match=r"float16 or bfloat16, found torch\.float32: train with precision"):
        layer(torch.randn(8, 64))
    assert layer.eval()(torch.randn(8, 64)).shape == (8, 128)


@pytest.mark.parametrize(
    ("capability", "cusparselt", "message"),
    [
        ((7, 5), True, "need compute capability 8.0, and Some GPU has 7.5"),
        ((9, 0), False, "this build of torch has no cuSPARSELt"),
        ((8, 6), False, None),
        ((9, 0), True, None),
    ],
)
def test_gpus_that_cannot_are_named(capability: tuple[int, int], cusparselt: bool, message: str | None) -> None:
    with (
        patch("torch.cuda.get_device_capability", lambda device: capability),
        patch("torch.cuda.get_device_name", lambda device: "Some GPU"),
        patch("torch.backends.cusparselt.is_available", lambda: cusparselt),
        patch("torch.version.hip", None),
    ):
        found = no_kernel(torch.device("cuda"))
    assert found is None if message is None else message in str(found)
