"""A split with ``layout="semi_structured"``: it trains like its masked twin, and any model loads any checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks, is_semi_structured, set_semi_structured
from tests.support.stand_ins_of_kernels import kernels_on_cpu

PRUNINGS = ("total", "incoming")


def mlp() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)]
    return nn.Sequential(*layers), torch.randn(16, 128)


@pytest.fixture(params=["cutlass", "cusparselt", None])
def backend(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param is None:
        yield None
        return
    with kernels_on_cpu(request.param):
        yield request.param


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    loss = out.float().square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def split(model: nn.Module, x: Tensor, layout: str = "semi_structured", **options: Any) -> fpe.ExpansionReport:
    """``options`` are fields of the expansion, or arguments of ``expand``."""
    fields = {key: options.pop(key) for key in ("alpha", "partition", "prune") if key in options}
    expansion = fpe.Expansion(layout=layout, **{"partition": "semi_structured", **fields})
    return fpe.expand(model, expansion, example_inputs=x, sites="0", **options)


@pytest.mark.parametrize("prune", PRUNINGS)
def test_it_trains_like_its_masked_twin(backend: str | None, prune: str) -> None:
    models, losses = [], []
    for layout in ("semi_structured", "masked"):
        model, x = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        step(model, optimizer, x)
        report = split(model, x, layout, prune=prune, optimizer=optimizer)
        assert report.nonzeros_before == report.nonzeros_after
        losses.append(torch.stack([step(model, optimizer, x) for _ in range(4)]))
        check_masks(model)
        models.append(model)
    assert is_semi_structured(models[0][0])
    assert models[0][0].fpe_plan.backend == backend
    assert torch.equal(models[0][0].fpe_mask_weight, models[1][0].fpe_mask_weight)
    torch.testing.assert_close(*losses, atol=2e-2, rtol=2e-2)


def test_any_model_loads_any_checkpoint(backend: str | None) -> None:
    wide, x = mlp()
    dense_state = copy.deepcopy(wide.state_dict())
    split(wide, x)
    narrow, _ = mlp()
    x = x if backend is None else x.bfloat16()
    fpe.load_expanded_state_dict(narrow, wide.state_dict())
    assert is_semi_structured(narrow[0])
    for model in (wide, narrow):
        model.to(x.dtype).eval()
    assert torch.equal(narrow(x), wide(x))
    masked = copy.deepcopy(wide)
    set_semi_structured(masked[0], on=False)
    fpe.load_expanded_state_dict(narrow, masked.state_dict())
    assert not is_semi_structured(narrow[0])
    assert torch.equal(narrow(x), masked(x))
    fpe.load_expanded_state_dict(wide, dense_state)
    assert type(wide[0]) is nn.Linear
    assert list(wide.state_dict()) == list(dense_state)


def test_a_second_split_starts_from_the_masks(backend: str | None) -> None:
    model, x = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    split(model, x, optimizer=optimizer)
    report = fpe.expand(model, fpe.Paper(alpha=2), sites="3", example_inputs=x, optimizer=optimizer)
    assert report.nonzeros_before == report.nonzeros_after
    assert is_semi_structured(model[0])  # the other site did not touch it
    fpe.expand(model, fpe.Paper(alpha=2), sites="0", example_inputs=x, optimizer=optimizer)
    assert not is_semi_structured(model[0])
    assert model[0].out_features == 256
    step(model, optimizer, x)
    check_masks(model)


def test_copies_are_stored_alike() -> None:
    model, x = mlp()
    average = torch.optim.swa_utils.AveragedModel(model)
    split(model, x, averages=[average.module])
    assert is_semi_structured(average.module[0])
    average.update_parameters(model)


def refused(**options: object) -> str:
    model, x = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the caller matches the message
        split(model, x, **options)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(error.value)


def test_refusals_are_one_sentence_and_change_nothing() -> None:
    assert "keeps 2 of 4 inputs, but with alpha=4 a child reads 1 of 4" in refused(alpha=4, partition="random")
    assert 'layout="grouped" with partition=fpe.partitions.Shared(groups=4)' in refused(alpha=4, partition="random")
    assert '2:4 allows 2; use partition="semi_structured"' in refused(partition="random")
    with (
        patch("fpe_lightning.sparse.semi_structured.layout.no_kernel", lambda device: "they need a newer one"),
        patch("fpe_lightning.sparse.semi_structured.layout.asks_a_gpu", lambda device: True),
    ):
        assert "this GPU cannot run the kernels: they need a newer one" in refused()


def test_a_width_that_the_kernels_do_not_take_is_named() -> None:
    model = nn.Sequential(nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 4))
    with pytest.raises(ValueError, match=r"shape is \(48, 128\), and the kernels take multiples of 64 along both axes"):
        split(model, torch.randn(2, 128))


def test_a_checkpoint_whose_mask_is_not_semi_structured_is_named() -> None:
    wide, x = mlp()
    split(wide, x)
    state = wide.state_dict()
    state["0.fpe_mask_weight"] = torch.ones_like(state["0.fpe_mask_weight"])
    with pytest.raises(ValueError, match=r"`0\.weight` in 2:4 form, which this model cannot: row 0 keeps 4 of the 4"):
        fpe.load_expanded_state_dict(mlp()[0], state)
