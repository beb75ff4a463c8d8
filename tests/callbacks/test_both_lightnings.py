"""The callbacks under both names of Lightning: ``pytorch_lightning`` has classes of its own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from boring import equal, network, outcome, resumable
from torch import nn

from fpe_lightning.callbacks import (
    BatchNormReestimation,
    ExpansionCallback,
    InterferenceMonitor,
    RunSummary,
    TensorBoardReport,
)
from fpe_lightning.callbacks.distributed import check_strategy
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.sparse import check_masks


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def pl(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param, reason="this package of Lightning is not installed")


def plain(pl: Any) -> Any:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Plain()


def trainer(pl: Any, *callbacks: Any, **options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    quiet["enable_checkpointing"] = "default_root_dir" in options
    return pl.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 3, **quiet, "callbacks": list(callbacks), **options}
    )


def test_splits_and_resumes(pl: Any, tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None = None) -> Any:
        saving = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        run = trainer(pl, ExpansionCallback(epoch=[1, 2]), saving, default_root_dir=tmp_path)
        run.fit(plain(pl), resumable(), resumable(), ckpt_path=ckpt_path)
        assert run.lightning_module.net[0].out_features == 24
        check_masks(run.lightning_module)
        return run

    run = fit()
    expected = outcome(run)
    for epoch in (0, 1):
        assert equal(outcome(fit(tmp_path / f"epoch={epoch}.ckpt")), expected)
    # A narrow module takes the wide weights.
    trainer(pl, ExpansionCallback(epoch=1)).validate(plain(pl), resumable(), ckpt_path=tmp_path / "epoch=2.ckpt")


def test_one_callback_without_a_list(pl: Any) -> None:
    assert isinstance(pl.Trainer(callbacks=ExpansionCallback(epoch=1), accelerator="cpu", logger=False), pl.Trainer)
    for callback in (ExpansionCallback(epoch=1), BatchNormReestimation(), RunSummary(), InterferenceMonitor()):
        assert isinstance(callback, pl.Callback)


def test_averages_of_the_weights(pl: Any) -> None:
    average = pl.callbacks.EMAWeightAveraging(decay=0.8)
    run = trainer(pl, average, ExpansionCallback(epoch=1))
    run.fit(plain(pl), resumable())
    assert run.lightning_module.net[0].out_features == 12
    assert average._average_model is None or average._average_model.module.net[0].out_features == 12
    mean = trainer(pl, pl.callbacks.WeightAveraging(), ExpansionCallback(epoch=1))
    with pytest.raises(MisconfigurationException, match="WeightAveraging averages buffers"):
        mean.fit(plain(pl), resumable())


def test_ddp_is_wrapped_again(pl: Any) -> None:
    run = trainer(pl, ExpansionCallback(epoch=1), strategy="ddp")
    try:
        run.fit(plain(pl), resumable())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert run.lightning_module.net[0].out_features == 12


def test_strategies(pl: Any) -> None:
    strategies = pl.strategies
    module: Any = nn.Linear(2, 1)
    check_strategy(SimpleNamespace(strategy=strategies.SingleDeviceStrategy()), module)  # type: ignore[arg-type]
    check_strategy(SimpleNamespace(strategy=strategies.DDPStrategy()), module)  # type: ignore[arg-type]
    for name in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
        strategy = object.__new__(getattr(strategies, name))
        with pytest.raises(MisconfigurationException, match=f"single device or under DDP; found {name}"):
            check_strategy(SimpleNamespace(strategy=strategy), module)  # type: ignore[arg-type]
    for name in ("FSDPStrategy", "DeepSpeedStrategy"):
        run: Any = SimpleNamespace(strategy=object.__new__(getattr(strategies, name)))
        with pytest.raises(MisconfigurationException, match="one device, DDP or ModelParallelStrategy"):
            InterferenceMonitor().setup(run, module, "fit")
    spawned = trainer(pl, ExpansionCallback(epoch=1), strategy="ddp_spawn")
    with pytest.raises(MisconfigurationException, match="`ddp_spawn` brings the weights back"):
        check_strategy(spawned, plain(pl))


def test_its_own_exception_catches_ours(pl: Any) -> None:
    fabric = "lightning.fabric" if pl.__name__ == "lightning.pytorch" else "lightning_fabric"
    theirs = importlib.import_module(f"{fabric}.utilities.exceptions").MisconfigurationException
    with pytest.raises(theirs, match="`epoch=9` is never reached"):
        trainer(pl, ExpansionCallback(epoch=9)).fit(plain(pl), resumable())


def test_loggers_and_checkpoints_are_found(pl: Any, tmp_path: Path) -> None:
    logger = pl.loggers.TensorBoardLogger(tmp_path, default_hp_metric=False)
    best = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val/loss")
    callbacks = [ExpansionCallback(epoch=1), best, TensorBoardReport(), RunSummary()]
    run = trainer(pl, *callbacks, logger=logger, default_root_dir=tmp_path)
    run.fit(plain(pl), resumable(), resumable())
    assert run.callback_metrics
    assert any(tmp_path.rglob("events*"))
    loud = trainer(pl, TensorBoardReport(), logger=pl.loggers.TensorBoardLogger(tmp_path), max_epochs=1)
    with pytest.warns(UserWarning, match="TensorBoard keeps the first table"):
        loud.fit(plain(pl), resumable())


@pytest.mark.parametrize("first", ["fpe_lightning.callbacks", "pytorch_lightning"])
def test_either_may_be_imported_first_and_the_other_package_stays_out(first: str) -> None:
    pytest.importorskip("pytorch_lightning", reason="not installed")
    second = {"fpe_lightning.callbacks", "pytorch_lightning"} - {first}
    code = (
        f"import sys, {first}\n"
        "if 'pytorch_lightning' not in sys.modules:\n"
        "    from fpe_lightning.callbacks import ExpansionCallback\n"
        "    ExpansionCallback(epoch=1)\n"
        "    assert not {'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)\n"
        f"import {second.pop()}, pytorch_lightning\n"
        "from fpe_lightning.callbacks import ExpansionCallback\n"
        "assert isinstance(ExpansionCallback(epoch=1), pytorch_lightning.Callback)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
