"""Packed 2:4 layers compute what they were packed from, and their files are plain tensors that load anywhere."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.sparse import PackedLinear, is_semi_structured, pack_for_inference, unpack_for_training
from fpe_lightning.sparse.semi_structured.packed import unpacked_state_dict
from tests.support.stand_ins_of_kernels import kernels_on_cpu


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))


def split_model(dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Sequential, Tensor]:
    model, x = model_of(), torch.randn(5, 128)
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition="semi_structured", prune="incoming", layout="semi_structured"),
        example_inputs=x,
    )
    return model.to(dtype), x.to(dtype)


@pytest.mark.parametrize("backend", ["cutlass", "cusparselt", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_packed_layers_compute_the_same(backend: str | None, dtype: torch.dtype, monkeypatch) -> None:
    model, x = split_model(dtype)
    expected = model(x).detach()
    if backend is None:
        assert pack_for_inference(model) == 1
        assert torch.equal(model(x), expected)
        return
    with kernels_on_cpu(backend):
        monkeypatch.setattr("fpe_lightning.sparse.semi_structured.packed.backend_of", lambda device: backend)
        assert pack_for_inference(model) == 1
        assert isinstance(model[0], PackedLinear)
        assert (model[0].fpe_plan.compressed is not None) == (backend == "cusparselt")
        torch.testing.assert_close(model(x), expected, atol=2e-2, rtol=2e-2)
        assert model(x[0]).shape == (4,)
        torch.testing.assert_close(model[0].cpu()(x), model[0](x))


def test_the_file_is_small_plain_and_loads_into_any_model(tmp_path: Path) -> None:
    model, x = split_model()
    dense = model[0].weight.nbytes
    pack_for_inference(model)
    state = model.state_dict()
    assert state["0.fpe_values"].nbytes + state["0.fpe_places"].nbytes == dense * 9 // 16
    assert not any(name.endswith(("mask", "0.weight")) for name in state)
    safetensors.torch.save_file(state, tmp_path / "packed.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "packed.safetensors")
    for other in (model_of(1), split_model()[0], copy.deepcopy(model)):
        fpe.load_expanded_state_dict(other.to(torch.bfloat16), loaded)
        assert isinstance(other[0], PackedLinear)
        assert torch.equal(other(x), model(x))
        assert list(other.state_dict()) == list(state)


def test_a_float32_model_loads_a_packed_file(tmp_path: Path) -> None:
    model, x = split_model()
    pack_for_inference(model)
    other = model_of(1)
    fpe.load_expanded_state_dict(other, model.state_dict())
    assert other(x.float()).dtype == torch.float32
    torch.testing.assert_close(other(x.float()).bfloat16(), model(x), atol=2e-2, rtol=2e-2)


def test_unpacking_gives_back_a_layer_that_trains() -> None:
    model, x = split_model()
    expected, weight = model(x).detach(), model[0].weight.detach().clone()
    names = list(dict(model.named_parameters()))
    pack_for_inference(model)
    assert unpacked_state_dict(model.state_dict())["0.weight"].equal(weight)
    unpack_for_training(model)
    assert is_semi_structured(model[0])
    assert list(dict(model.named_parameters())) == names
    assert torch.equal(model(x), expected)
    model(x).sum().backward()
    assert model[0].weight.grad is not None


def test_bad_weights_and_gradients_are_refused_and_nothing_changes() -> None:
    model, x = split_model(torch.float32)
    with pytest.raises(TypeError, match=r"float32 cannot be packed: the kernels take float16, bfloat16 and int8; conv"):
        pack_for_inference(model)
    model, x = split_model()
    with torch.no_grad():
        model[0].weight[0, :4] = 1
    with pytest.raises(ValueError, match="row 0 keeps 4 of the 4 inputs 0 to 3, and 2:4 allows 2"):
        pack_for_inference(model)
    assert is_semi_structured(model[0])
    model, x = split_model()
    pack_for_inference(model)
    with pytest.raises(RuntimeError, match="is for inference, and a gradient was asked for"):
        model(x.requires_grad_())
