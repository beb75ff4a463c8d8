"""Rewire under DDP: equal masks on all ranks, those of one process, and resumes; other strategies are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from boring import close, equal, start
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from rewire_worker import MODES, fit

from fpe_lightning.callbacks.rewire_ranks import check_strategy

WORKER = Path(__file__).with_name("rewire_worker.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_end_as_one_and_resume(tmp_path: Path) -> None:
    output = start(WORKER, tmp_path, 2, *MODES)
    for mode in MODES:
        files = [tmp_path / f"{mode}-{rank}.pt" for rank in range(2)]
        assert all(path.exists() for path in files), output[-4000:]
        ranks = [torch.load(path, weights_only=True) for path in files]
        assert equal(ranks[0], ranks[1]), f"the ranks of {mode} drifted apart"
        first, *resumed = ranks[0]
        assert all(equal(each, first) for each in resumed), mode
        if mode != "accumulate":  # one process weighs batches of an accumulation the same way, but rounds otherwise
            expected = fit(tmp_path / "alone", mode)
            masks = [key for key in expected["model"] if "fpe" in key]
            assert masks
            assert all(torch.equal(first["model"][key], expected["model"][key]) for key in masks), mode
            assert close(first["model"], expected["model"]), mode


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_shard_weights_are_refused(strategy: type) -> None:
    run: Any = SimpleNamespace(strategy=strategy())
    with pytest.raises(MisconfigurationException, match="Rewire needs whole weights and gradients on every process"):
        check_strategy(run)
