"""Runs under DDP on several processes, started by ``test_distributed.py``; every rank saves what it ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from boring import Plain, data, outcome, trainer
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data import BatchLoader
from fpe_lightning.sparse import check_masks


class WithoutNorm(Plain):
    """No BatchNorm, so that parts of a batch have the gradients of the whole."""

    def __init__(self) -> None:
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01))
        self.net = nn.Sequential(self.net[0], nn.Tanh(), self.net[3])


class Drifting(WithoutNorm):
    """Changes weights, or what the optimizer holds, on the last rank alone."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def on_train_epoch_start(self) -> None:
        if self.global_rank == self.trainer.world_size - 1:
            bias = self.net[0].bias
            moved = bias if self.what == "weights" else self.optimizers().state[bias].get("momentum_buffer")
            if moved is not None:
                with torch.no_grad():
                    moved.add_(1e-6)


class LastRank:
    """A trigger that only the last rank pulls."""

    def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        return trainer.global_rank == trainer.world_size - 1


class Noted(pl.Callback):
    """What a rank holds after each split and each epoch: weights, masks, optimizer state and what it gathered."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: Any, report: Any) -> None:
        gathered = [p.grad is not None and bool(p.grad.any()) for p in pl_module.parameters()]
        self.seen.append((self.copy(trainer), all(gathered) and trainer.global_step == self.step))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # True after a batch without an optimizer step: gradients are being gathered.
        self.step = trainer.global_step if trainer.fit_loop._should_accumulate() else -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen.append((self.copy(trainer), None))

    def copy(self, trainer: pl.Trainer) -> Any:
        def cloned(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: cloned(each) for key, each in value.items()}
            if isinstance(value, list):
                return [cloned(each) for each in value]
            return value.clone() if isinstance(value, torch.Tensor) else value

        return cloned(outcome(trainer))


def fit(
    directory: Path,
    ckpt_path: Path | None = None,
    module: Any = None,
    splits: dict[str, Any] | None = None,
    noted: Noted | None = None,
    **options: Any,
) -> pl.Trainer:
    """Fit with splits, by default after steps 1 and 3; on one process with the batches of all together."""
    saving = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    callback = ExpansionCallback(**(splits or {"step": [1, 3]}))
    callbacks = [callback, noted or Noted(), saving]
    run = trainer(*callbacks, directory=directory, use_distributed_sampler=False, **{"max_epochs": 2, **options})
    run.fit(module or WithoutNorm(), batches(run.world_size, run.global_rank), ckpt_path=ckpt_path)
    return run


def batches(processes: int, rank: int) -> BatchLoader:
    """Three steps an epoch: the processes share the rows that one process takes in a batch."""
    shares = {"num_replicas": processes, "rank": rank}
    return BatchLoader(*data().tensors, batch_size=8 // processes, shuffle=True, **shares)


MODES: dict[str, dict[str, Any]] = {
    "epoch": {"splits": {"epoch": [1, 2]}, "max_epochs": 3},
    "step": {"splits": {"step": [1, 4]}},
    # 3 batches an epoch, a step after the third: both splits come in the middle of an accumulation.
    "middle": {"splits": {"fraction": [0.3, 0.8]}, "accumulate_grad_batches": 3},
    "accumulate": {"accumulate_grad_batches": 2},
    "unused": {},
    "view": {},
    "trigger": {"splits": {"trigger": LastRank(), "max_splits": 2}, "max_epochs": 3},
    "resume": {},
}
"""Options of one way of training, the same on any number of processes."""


def train_by_fabric(processes: int) -> dict[str, Any]:
    """Without a Trainer: DDP holds the parameters that it was made with, so the split module needs a new wrapper."""
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto")
    fabric.launch()
    net = WithoutNorm().net
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    wrapped, stepping = fabric.setup(net, optimizer)
    for step, (x, y) in enumerate(batches(fabric.world_size, fabric.global_rank)):
        if step == 1:
            fpe.expand(net, alpha=2, optimizer=optimizer, example_inputs=x)
            wrapped = fabric.setup_module(net)
        stepping.zero_grad()
        fabric.backward(F.cross_entropy(wrapped(x), y))
        stepping.step()
    check_masks(net)
    return dict(net.state_dict())


def main() -> None:
    directory, processes = Path(sys.argv[1]), int(sys.argv[2])
    rank = int(os.environ.get("LOCAL_RANK", 0))
    for mode in sys.argv[3:]:
        options: dict[str, Any] = {"devices": processes, "strategy": "ddp"}
        if mode == "unused":
            options["strategy"] = "ddp_find_unused_parameters_true"
        if mode == "view":
            options["strategy"] = DDPStrategy(static_graph=True, gradient_as_bucket_view=True)
        options |= MODES.get(mode, {})
        noted = Noted()
        if mode == "fabric":
            torch.save(train_by_fabric(processes), directory / f"{mode}-{rank}.pt")
            continue
        if mode == "drift-masks":
            run = fit(directory / mode, splits={"step": [1, 3], "seed": rank}, **options)
        elif mode.startswith("drift"):
            run = fit(directory / mode, module=Drifting("moments" if mode == "drift-moments" else "weights"), **options)
        elif mode == "go-on":
            run = fit(directory / mode, directory / "from.ckpt", **options)
        else:
            run = fit(directory / mode, noted=noted, **options)
        if mode == "resume":
            run = fit(directory / mode, directory / mode / "step=4.ckpt", noted=noted, **options)
        found = {**outcome(run), "seen": noted.seen}
        torch.save(found, directory / f"{mode}-{run.global_rank}.pt")


if __name__ == "__main__":
    main()
