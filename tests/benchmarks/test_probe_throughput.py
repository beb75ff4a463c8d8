"""The benchmark compares equal work: both loops end with the same weights."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
import pytest
import torch

from benchmarks.logging_ways import Bare, LogEveryStep, LogMetricObjects, LogOncePerEpoch
from benchmarks.probe_throughput import PlainLoop, TurnByTurn, make_loaders


@pytest.mark.parametrize("way", [Bare, LogOncePerEpoch, LogEveryStep, LogMetricObjects])
def test_both_loops_do_the_same_work(way: type[Bare], tmp_path: Path) -> None:
    turns = TurnByTurn(PlainLoop(width=4, batch_size=2048), time.perf_counter)
    model = way(4)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[turns],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, *make_loaders(2048))
    pairs = zip(model.network.parameters(), turns.plain.network.parameters(), strict=True)
    assert all(torch.equal(ours, plain) for ours, plain in pairs)
    assert (len(turns.plain_seconds), len(turns.seconds)) == (2, 1)
