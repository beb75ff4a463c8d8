"""One run under DDP on two processes, started by ``test_distributed.py``; every rank saves what it ends with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from boring import Plain, data, outcome, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data import BatchLoader


class WithoutNorm(Plain):
    """No BatchNorm, so that two halves of a batch have the gradients of the whole."""

    def __init__(self) -> None:
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01))
        self.net = nn.Sequential(self.net[0], nn.Tanh(), self.net[3])


class Drifting(WithoutNorm):
    """Changes weights on one rank alone."""

    def on_train_epoch_start(self) -> None:
        if self.global_rank == 1:
            with torch.no_grad():
                self.net[0].bias.add_(1e-6)


def fit(directory: Path, ckpt_path: Path | None = None, module: Any = None, batch_size: int = 4, **options: Any) -> Any:
    """Fit with two splits, after steps 1 and 3; the same on one process with twice the batch size."""
    saving = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    callback = ExpansionCallback(step=[1, 3])
    run = trainer(callback, saving, directory=directory, max_epochs=2, use_distributed_sampler=False, **options)
    # Two processes share the rows that one process takes in a batch of twice the size.
    shares = {"num_replicas": run.world_size, "rank": run.global_rank}
    loader = BatchLoader(*data().tensors, batch_size=batch_size, shuffle=True, **shares)
    run.fit(module or WithoutNorm(), loader, ckpt_path=ckpt_path)
    return run


def main() -> None:
    directory, mode = Path(sys.argv[1]), sys.argv[2]
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    if mode == "accumulate":
        options["accumulate_grad_batches"] = 2
    if mode == "unused":
        options["strategy"] = "ddp_find_unused_parameters_true"
    module = Drifting() if mode == "drift" else None
    run = fit(directory, None, module, **options)
    if mode == "resume":
        run = fit(directory, directory / "step=4.ckpt", **options)
    torch.save(outcome(run), directory / f"rank{run.global_rank}.pt")


if __name__ == "__main__":
    main()
