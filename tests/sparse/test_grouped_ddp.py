"""Blocks under DDP: ranks stay equal, and equal to one process on the joined batch, before and after a split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import joined, states_of_both

import fpe_lightning as fpe
from fpe_lightning.partitions import Shared


def make() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    return model, torch.randn(8, 64)


def train(wrapped: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(x).square().mean().backward()
        optimizer.step()


def split(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition=Shared(groups=2), prune="columns", layout="grouped"),
        optimizer=optimizer,
        example_inputs=x,
    )


def worker(rank: int, port: int, folder: str) -> None:
    with joined(rank, port):
        torch.set_num_threads(1)
        model, x = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        mine = x[4 * rank : 4 * rank + 4]
        train(DistributedDataParallel(model), optimizer, mine)
        split(model, optimizer, x)
        train(DistributedDataParallel(model), optimizer, mine)
        torch.save(model.state_dict(), Path(folder, f"{rank}.pt"))


@pytest.mark.slow
def test_ranks_are_equal_and_equal_to_one_process(tmp_path: Path) -> None:
    first, second = states_of_both(worker, tmp_path)
    assert all(torch.equal(first[key], second[key]) for key in first)
    model, x = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    split(model, optimizer, x)
    train(model, optimizer, x)
    assert first["0.weight"].shape == model[0].weight.shape == (8 * 64 - 8 * 5, 1)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(first[key], value, atol=1e-5, rtol=1e-4)
