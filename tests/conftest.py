"""A tiny run for every test of the command line, and a cache that is never the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import yaml

# Networks here are so small that a second thread costs more than it saves, in processes that tests start too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep embeddings that a test encodes out of the user's cache."""
    monkeypatch.setenv("FPE_CACHE", str(tmp_path_factory.getbasetemp() / "fpe_cache"))


MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


@pytest.fixture(autouse=True)
def own_process_group() -> Iterator[None]:
    """Take back what tells processes where to meet: those of the next test would find the store of this one there."""
    before = {name: os.environ.get(name) for name in MEETING_PLACE}
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def _alone(tmp_path: Path, own_process_group: None) -> None:
    """A process group of this process alone, which ``own_process_group`` takes down."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, config: dict[str, Any]) -> Path:
        """Write a config as YAML into the test's own folder."""
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return write


@pytest.fixture
def tiny_config(write_config: Callable[..., Path], tmp_path: Path) -> Path:
    """Three epochs of the Boolean task on 64 samples, split at the second epoch."""
    callbacks: list[dict[str, Any]] = [
        {
            "class_path": "fpe_lightning.callbacks.ExpansionCallback",
            "init_args": {
                "expansion": {"class_path": "fpe_lightning.Paper", "init_args": {"seed": "${seed_everything}"}},
                "epoch": 1,
            },
        },
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"monitor": "val/accuracy", "mode": "max", "save_last": True},
        },
        {"class_path": "fpe_lightning.callbacks.RunSummary"},
    ]
    network = {
        "class_path": "fpe_lightning.networks.MLP",
        "init_args": {"in_features": 24, "hidden": 8, "out_features": 1},
    }
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "logs"), "name": "tiny", "version": "run", "default_hp_metric": False},
    }
    return write_config(
        "tiny",
        {
            "seed_everything": 0,
            "model": {
                "class_path": "fpe_lightning.modules.Classifier",
                "init_args": {"network": network, "task": "binary"},
            },
            "data": {
                "class_path": "fpe_lightning.data.BooleanDataModule",
                "init_args": {
                    "train_size": 64,
                    "val_size": 32,
                    "test_size": 32,
                    "batch_size": 16,
                    "seed": "${seed_everything}",
                },
            },
            "trainer": {
                "max_epochs": 3,
                "accelerator": "cpu",
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "logger": logger,
                "callbacks": callbacks,
            },
        },
    )
