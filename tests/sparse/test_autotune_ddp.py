"""Of several processes the first decides on a layout, and its error is everybody's."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn
from two_processes import joined, states_of_both

import fpe_lightning as fpe
from fpe_lightning.sparse.choices import decided_by_rank_0


def worker(rank: int, port: int, folder: str) -> None:
    with joined(rank, port):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(8, 64)
        times = [{"masked": 2.0, "grouped": 1.0}, {"masked": 1.0, "grouped": 2.0}][rank]

        def measured(layers: dict[str, nn.Module], *_: object) -> dict[str, float]:
            return {name: times.get(name, 3.0) for name in layers}

        with (
            patch("fpe_lightning.sparse.autotune.measure", measured),
            patch.dict("os.environ", FPE_CACHE=f"{folder}/{rank}"),
        ):
            fpe.expand(
                model, fpe.Expansion(alpha=2, partition="shared", prune="columns", layout="auto"), example_inputs=x
            )

        def fails() -> int:
            raise ValueError(f"rank {rank} has no clock")

        with pytest.raises(ValueError, match="rank 0 has no clock"):
            decided_by_rank_0(fails)
        torch.save(model.state_dict(), Path(folder, f"{rank}.pt"))


@pytest.mark.slow
def test_the_first_process_decides(tmp_path: Path) -> None:
    first, second = states_of_both(worker, tmp_path)
    assert "0.fpe_blocks" in first
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [path.name for path in sorted(tmp_path.glob("*/layouts.json"))] == ["layouts.json"]  # the first one's
