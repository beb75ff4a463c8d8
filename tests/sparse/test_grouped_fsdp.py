"""Blocks that FSDP2 shards, without Lightning: they train as unsharded ones, and are split only while whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from two_processes import joined, states_of_both

import fpe_lightning as fpe
from fpe_lightning.partitions import Shared
from fpe_lightning.sparse import structure_of

X = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
BUDGETS = ("columns", "total")  # whole blocks, and blocks with holes


def make(budget: str, splits: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))
    for _ in range(splits):
        fpe.expand(
            model, fpe.Expansion(alpha=2, partition=Shared(groups=2), prune=budget, layout="grouped"), example_inputs=X
        )
    return model


def shard(model: nn.Sequential, processes: int, each: bool) -> nn.Sequential:
    mesh = init_device_mesh("cpu", (processes,))
    for layer in (model[0], model[2]) if each else ():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def whole(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict()
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in state.items()}


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("each", [False, True], ids=["whole model", "each layer"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_sharded_model_trains_as_an_unsharded_one_and_is_not_split(budget: str, each: bool) -> None:
    plain, sharded = make(budget), shard(make(budget), 1, each)
    for model in (plain, sharded):
        train(model, X)
    expected = plain.state_dict()

    def unchanged() -> bool:
        found = whole(sharded)
        return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in found)

    assert unchanged()
    assert fpe.count_nonzeros(sharded) == fpe.count_nonzeros(plain)
    assert [site.name for site in fpe.find_sites(sharded, X)] == ["0"]
    assert unchanged()
    for expansion in (fpe.Paper(), fpe.Blocks(groups=2), fpe.ByShape()):
        with pytest.raises(ValueError, match=r"is sharded, and FSDP2 would put it back after a split of 0; split"):
            fpe.expand(sharded, expansion, example_inputs=X)
        assert unchanged()
        assert structure_of(sharded[0]) is not None
    with torch.no_grad():
        assert torch.equal(sharded(X), plain(X))
    train(sharded, X)


def worker(rank: int, port: int, folder: str, budget: str) -> None:
    with joined(rank, port):
        torch.set_num_threads(1)
        model = shard(make(budget), 2, each=False)
        train(model, X[4 * rank : 4 * rank + 4])
        torch.save(whole(model), Path(folder, f"{rank}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_two_processes_end_as_one(budget: str, tmp_path: Path) -> None:
    first, second = states_of_both(worker, tmp_path, budget)
    assert all(torch.equal(first[key], second[key]) for key in first)
    model = make(budget)
    train(model, X)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-4)
