"""DDP trains split networks as one process does; what shards parameters is refused before anything is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, equal, loader, outcome, trainer
from ddp_worker import WithoutNorm, fit
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.callbacks.distributed import check_ranks_agree, check_strategy
from fpe_lightning.expansion import restore_structure_on_load

WORKER = Path(__file__).with_name("ddp_worker.py")


def two_processes(directory: Path, mode: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{WORKER.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(directory), mode]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def close(left: Any, right: Any) -> bool:
    return all(torch.allclose(left[key].float(), right[key].float(), atol=1e-5) for key in left | right)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["accumulate", "unused", "resume"])
def test_two_processes_end_as_one_with_twice_the_batch(tmp_path: Path, mode: str) -> None:
    result = two_processes(tmp_path, mode)
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert equal(ranks[0], ranks[1]), "the ranks drifted apart"
    options = {"accumulate_grad_batches": 2} if mode == "accumulate" else {}
    one = fit(tmp_path / "one", batch_size=8, **options)
    expected = outcome(one)["model"]
    assert expected["net.0.weight"].shape == ranks[0]["model"]["net.0.weight"].shape == (24, 48)
    assert close(ranks[0]["model"], expected)


@pytest.mark.slow
def test_ranks_that_differ_are_found_at_the_split(tmp_path: Path) -> None:
    result = two_processes(tmp_path, "drift")
    assert result.returncode != 0
    assert "After a split, rank 1 of 2 differs from rank 0 in weights or masks" in result.stderr


@pytest.mark.parametrize("strategy", [FSDPStrategy(), ModelParallelStrategy()], ids=["FSDP", "ModelParallel"])
def test_sharding_strategies_are_refused_in_setup(strategy: Any) -> None:
    message = f'single device or under DDP; found {type(strategy).__name__}, .* Use `strategy="ddp"`'
    with pytest.raises(MisconfigurationException, match=message):
        ExpansionCallback(epoch=1).setup(fake_trainer(strategy), Plain(), "fit")


def test_other_strategies_are_refused_by_name() -> None:
    class DeepSpeedStrategy:
        """Needs a package of its own; only its name counts here."""

    with pytest.raises(MisconfigurationException, match="found DeepSpeedStrategy, which shards or re-owns parameters"):
        check_strategy(fake_trainer(DeepSpeedStrategy()), Plain())


def fake_trainer(strategy: Any) -> Any:
    return SimpleNamespace(strategy=strategy, callbacks=[], fast_dev_run=False, max_epochs=9, max_steps=-1)


def test_spawned_processes_bring_weights_back_to_a_module_that_can_take_them() -> None:
    run = pl.Trainer(
        strategy="ddp_spawn", devices=2, accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=2
    )
    assert isinstance(run.strategy, DDPStrategy)
    module = Plain()
    with pytest.raises(MisconfigurationException, match=r"`ddp_spawn` brings .*, or call `restore"):
        check_strategy(run, module)
    restore_structure_on_load(module)
    check_strategy(run, module)


def test_one_process_agrees_with_itself() -> None:
    run = trainer(max_epochs=1)
    run.fit(WithoutNorm(), loader())
    check_ranks_agree(run, run.lightning_module)
