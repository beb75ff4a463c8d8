"""Modules as their users write them, who know nothing of this project, and short runs of a Trainer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data import BatchLoader
from fpe_lightning.sparse import check_masks


def data(samples: int = 24, inputs: int = 48, seed: int = 0) -> TensorDataset:
    """Labels that a linear rule gives, so that gradients point somewhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator)
    return TensorDataset(x, (x @ torch.randn(inputs, 3, generator=generator)).argmax(1))


def loader(batch_size: int = 4, samples: int = 24) -> DataLoader:
    """Six batches by default, in a fixed order."""
    return DataLoader(data(samples), batch_size=batch_size)


def resumable(batch_size: int = 4) -> BatchLoader:
    """The same, shuffled, and able to go on in the middle of an epoch; Lightning starts a DataLoader over there."""
    return BatchLoader(*data().tensors, batch_size=batch_size, shuffle=True)


def network(width: int = 6, seed: int = 0) -> nn.Sequential:
    """48 inputs, one hidden layer, 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(48, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3))


class Plain(pl.LightningModule):
    """A LightningModule without hyperparameters, example input or anything else that would help."""

    def __init__(self, optimizer: Any = None, scheduler: Any = None) -> None:
        super().__init__()
        self.net = network()
        self.make_optimizer = optimizer or (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
        self.make_scheduler = scheduler

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.step(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}


def trainer(*callbacks: pl.Callback, directory: Path | None = None, **options: Any) -> pl.Trainer:
    """A quiet Trainer for a few epochs on one CPU; it writes checkpoints where a directory is given."""
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 4,
            "logger": False,
            "enable_checkpointing": directory is not None,
            "default_root_dir": directory,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": list(callbacks),
            **options,
        }
    )


def outcome(fitted: pl.Trainer) -> dict[str, Any]:
    """Weights, masks, records, optimizer states and learning rates at the end of a run."""
    module = fitted.lightning_module
    return {
        "model": dict(module.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in fitted.optimizers],
        "rates": [group["lr"] for optimizer in fitted.optimizers for group in optimizer.param_groups],
        "held": [
            [name for name, p in module.named_parameters() for q in group["params"] if p is q]
            for optimizer in fitted.optimizers
            for group in optimizer.param_groups
        ],
    }


def equal(left: Any, right: Any) -> bool:
    """Equality of nested containers that hold tensors, bit by bit."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return isinstance(left, Tensor) and isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def close(left: Any, right: Any, rtol: float = 1e-5, atol: float = 1e-5) -> bool:
    """The same but for sums that were added in another order."""
    if isinstance(left, Tensor):
        return left.shape == right.shape and torch.allclose(left.double(), right.double(), rtol=rtol, atol=atol)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key], rtol, atol) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(close(a, b, rtol, atol) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def start(worker: Path, *arguments: object, timeout: float = 840) -> str:
    """Run a script that starts processes of its own, end them all, and return what they printed."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{worker.parent}", "OMP_NUM_THREADS": "1"}
    environment.pop("MASTER_PORT", None)  # Lightning looks for a free one
    process = subprocess.Popen(
        [sys.executable, str(worker), *map(str, arguments)],
        **{"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Run:
    """One way of training: fits, and resumes from the checkpoint of any step."""

    def __init__(self, make: Callable[[], pl.LightningModule], directory: Path, **options: Any) -> None:
        self.make, self.directory, self.options = make, directory, options

    def __call__(self, step: int | None = None, expansion: dict[str, Any] | None = None) -> dict[str, Any]:
        saving = ModelCheckpoint(self.directory, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        callback = ExpansionCallback(**{"step": [3, 5], **(expansion or {})})
        options = {"max_epochs": 2, "max_steps": 8, **self.options}
        run = trainer(callback, *([] if step else [saving]), directory=self.directory, **options)
        run.fit(self.make(), resumable(), ckpt_path=self.directory / f"step={step}.ckpt" if step else None)
        module = run.lightning_module
        check_masks(module)
        assert module.net[0].out_features == 24
        assert fpe.count_nonzeros(module.net) == fpe.count_nonzeros(network())
        return outcome(run)

    def resumes(self, *steps: int) -> None:
        expected = self()
        for step in steps:
            assert equal(self(step), expected), f"resumed after step {step}"
