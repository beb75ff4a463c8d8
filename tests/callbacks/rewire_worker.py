"""Rewires under DDP on several processes, started by ``test_rewire_ddp.py``; every rank saves what it ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from boring import outcome, trainer
from ddp_worker import WithoutNorm, batches
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, Rewire


class Sparse(WithoutNorm):
    """Wide and sparse from the start."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 3))
        fpe.sparsify(self.net, 0.3)


MODES: dict[str, dict[str, Any]] = {
    "sparse": {},
    "model": {"scope": "model"},
    "folded": {"layout": "folded"},
    "accumulate": {"accumulate_grad_batches": 2},
    "set": {"method": "set"},
}
"""Options of one way of training, the same on any number of processes."""


def fit(directory: Path, mode: str, step: int | None = None, **options: Any) -> dict[str, Any]:
    """Nine steps with an update after every third one; on one process with the batches of all together."""
    given = {**MODES[mode], **options}
    layout = given.pop("layout", None)
    every = 2 if mode == "accumulate" else 3
    callback = Rewire(given.pop("method", "rigl"), every=every, until=1.0, scope=given.pop("scope", "layer"))
    callbacks: list[pl.Callback] = [callback]
    if layout:
        callbacks.append(ExpansionCallback(fpe.Paper(alpha=4, prune="incoming", layout=layout), step=1))
    callbacks.append(ModelCheckpoint(directory / mode, filename="{step}", save_top_k=-1, every_n_train_steps=1))
    run = trainer(*callbacks, directory=directory / mode, use_distributed_sampler=False, max_epochs=3, **given)
    path = directory / mode / f"step={step}.ckpt" if step else None
    run.fit(WithoutNorm() if layout else Sparse(), batches(run.world_size, run.global_rank), ckpt_path=path)
    return outcome(run)


def main() -> None:
    directory, processes = Path(sys.argv[1]), int(sys.argv[2])
    rank = int(os.environ.get("LOCAL_RANK", 0))
    for mode in sys.argv[3:]:
        options: dict[str, Any] = {"devices": processes, "strategy": "ddp"}
        found = [fit(directory, mode, **options)]
        if mode in ("sparse", "folded"):
            found += [fit(directory, mode, step=step, **options) for step in (2, 3, 4)]
        torch.save(found, directory / f"{mode}-{rank}.pt")


if __name__ == "__main__":
    main()
