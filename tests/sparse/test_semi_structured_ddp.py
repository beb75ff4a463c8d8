"""2:4 layers under DDP: ranks stay equal, and equal to one process on the joined batch, before and after a split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import joined, states_of_both

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks, is_semi_structured
from tests.support.stand_ins_of_kernels import kernels_on_cpu


def make() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(16, 128)


def train(wrapped: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = wrapped(x)
        out.float().square().mean().backward()
        optimizer.step()


def split(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    fpe.expand(
        model,
        fpe.Expansion(alpha=2, partition="semi_structured", prune="incoming", layout="semi_structured"),
        optimizer=optimizer,
        example_inputs=x,
    )


def worker(rank: int, port: int, folder: str, backend: str) -> None:
    with joined(rank, port):
        torch.set_num_threads(1)
        model, x = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        mine = x[8 * rank : 8 * rank + 8]
        with kernels_on_cpu(backend):
            train(DistributedDataParallel(model), optimizer, mine)
            split(model, optimizer, x)
            train(DistributedDataParallel(model), optimizer, mine)
            train(torch.compile(DistributedDataParallel(model), backend="aot_eager"), optimizer, mine)
        assert is_semi_structured(model[0])
        check_masks(model)
        torch.save(model.state_dict(), Path(folder, f"{rank}.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cutlass", "cusparselt"])
def test_ranks_are_equal_and_equal_to_one_process(tmp_path: Path, backend: str) -> None:
    first, second = states_of_both(worker, tmp_path, backend)
    assert all(torch.equal(first[key], second[key]) for key in first)
    model, x = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with kernels_on_cpu(backend):
        train(model, optimizer, x)
        split(model, optimizer, x)
        train(model, optimizer, x)
        train(model, optimizer, x)
    assert torch.equal(first["0.fpe_mask_weight"], model[0].fpe_mask_weight)
    for key, value in model.state_dict().items():
        # Half batches are rounded to bfloat16 on their own, and AdamW takes a step of lr for the smallest gradient.
        torch.testing.assert_close(first[key], value, atol=0.02, rtol=0.02)
