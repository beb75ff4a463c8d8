"""Runs under FSDP2 on several CPU processes, started by ``test_fsdp2.py``; rank 0 saves what each ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from boring import data, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpandableModelParallelStrategy, ExpansionCallback, InterferenceMonitor, RunSummary
from fpe_lightning.data import BatchLoader
from fpe_lightning.sparse import masked_parameters


class Block(nn.Module):
    """A hidden layer of uneven width after a LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(48), nn.Linear(48, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class Ensemble(nn.ModuleList):
    """The sum of several blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return sum((block(x) for block in self), torch.zeros(()))


class Blocks(pl.LightningModule):
    """Blocks that are sharded one by one, in double precision, so that sums in another order do not matter."""

    def __init__(self, optimizer: str = "AdamW") -> None:
        super().__init__()
        self.optimizer = optimizer
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Ensemble([Block(13), Block(12), Block(11)]).double()

    def configure_model(self) -> None:
        if hasattr(self.trainer.strategy, "device_mesh") and not hasattr(self.net, "unshard"):
            mesh = self.device_mesh["data_parallel"]
            for block in self.net:
                fully_shard(block, mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0].double()), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0].double()), batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        if self.optimizer == "SGD":
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        decay = [p for p in self.parameters() if p.dim() > 1]
        groups = [{"params": decay}, {"params": [p for p in self.parameters() if p.dim() == 1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Noted(pl.Callback):
    """Looks at what FSDP2 holds after each split: one root, shards of the new sizes, objects kept."""

    def on_before_expansion(self, trainer: pl.Trainer, pl_module: Any, sites: Any) -> None:
        self.kept = [*trainer.optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: Any, report: Any) -> None:
        now = [*trainer.optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]
        assert all(a is b for a, b in zip(now, self.kept, strict=True))
        if trainer.world_size > 1:
            for parameter in pl_module.parameters():
                assert -(-parameter.shape[0] // trainer.world_size) >= parameter.to_local().shape[0]


def fit(
    directory: Path,
    processes: int = 2,
    ckpt_path: Path | None = None,
    *more: pl.Callback,
    callback: pl.Callback | None = None,
    module: Blocks | None = None,
    full: bool = True,
    **options: Any,
) -> pl.Trainer:
    """Fit, by default with three splits; on one process with the batches of all together."""
    callback = callback or ExpansionCallback(alpha=2, step=[2, 5, 9], sites="net.[01].*")
    saving = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    if processes > 1:
        ours = isinstance(callback, ExpansionCallback)
        strategy = ExpandableModelParallelStrategy if ours else ModelParallelStrategy
        sharding = strategy(processes, 1, save_distributed_checkpoint=not full)
        options = {"strategy": sharding, "devices": processes, **options}
    run = trainer(
        *(callback, Noted(), saving, *more),
        directory=directory,
        use_distributed_sampler=False,
        **{"max_epochs": 4, **options},
    )
    training, validation = (
        BatchLoader(
            *data().tensors,
            batch_size=8 // run.world_size,
            shuffle=shuffle,
            num_replicas=run.world_size,
            rank=run.global_rank,
        )
        for shuffle in (True, False)
    )
    run.fit(module or Blocks(), training, validation, ckpt_path=ckpt_path)
    return run


def watched() -> list[pl.Callback]:
    """Callbacks of ours that look at weights around a split."""
    return [InterferenceMonitor(), RunSummary()]


def accumulating() -> ExpansionCallback:
    """Three batches an epoch: the first split comes in the middle of an accumulation over three."""
    return ExpansionCallback(fraction=[0.1, 0.5], sites="net.[01].*")


def outcome(run: pl.Trainer) -> dict[str, Any]:
    """Whole weights and optimizer states, the same names on any number of processes."""
    module, options = run.lightning_module, StateDictOptions(full_state_dict=True, cpu_offload=True)
    for name, parameter, mask in masked_parameters(module):
        value = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        assert not value[~mask].any(), name
    return {
        "model": get_model_state_dict(module, options=options),
        "optimizer": get_optimizer_state_dict(module, run.optimizers[0], options=options),
        "rates": [group["lr"] for group in run.optimizers[0].param_groups],
        "widths": [module.net[block].up.out_features for block in range(3)],
        "step": run.global_step,
    }


def main() -> None:
    directory, processes = Path(sys.argv[1]), int(sys.argv[2])
    rank = int(os.environ.get("LOCAL_RANK", 0))

    def save(name: str, run: pl.Trainer) -> None:
        found = outcome(run)
        if rank == 0:
            torch.save(found, directory / f"{name}.pt")

    for name in sys.argv[3:]:
        kind, *arguments = name.split("-")
        if kind == "shards":
            save(name, fit(directory / name, processes, full=False))
        elif kind == "full":
            save(name, fit(directory / name, processes))
        elif kind == "accumulate":
            save(name, fit(directory / name, processes, callback=accumulating(), accumulate_grad_batches=3))
        elif kind == "SGD":
            options = {"gradient_clip_val": 0.5, "logger": CSVLogger(directory), "log_every_n_steps": 1}
            save(name, fit(directory / name, processes, None, *watched(), module=Blocks("SGD"), **options))
        elif kind == "plain":
            save(name, fit(directory / name, processes, callback=pl.Callback()))
        elif kind == "resume":
            source, step = arguments
            ckpt_path = directory / source / f"step={step}.ckpt"
            module = Blocks("SGD" if source == "SGD" else "AdamW")
            save(name, fit(directory / name, processes, ckpt_path, module=module, full=source != "shards"))
        elif kind == "widened":
            module = Blocks()
            fpe.restore_structure_from_file(module, directory / "widened.ckpt")
            callback = pl.Callback()
            save(name, fit(directory / name, processes, directory / "widened.ckpt", callback=callback, module=module))
        elif kind == "shrink":  # after a run, test an early checkpoint in the wide module, and train on from there
            ckpt_path = directory / "shards" / "step=1.ckpt"
            first = fit(directory / name, processes, full=False)
            module = first.lightning_module
            first.test(module, first.val_dataloaders, ckpt_path=ckpt_path, verbose=False)
            assert [module.net[block].up.out_features for block in range(3)] == [13, 12, 11]
            save(name, fit(directory / name, processes, ckpt_path, module=module, full=False))
        elif kind == "drift":
            callback = ExpansionCallback(seed=rank, step=1, sites="net.0.*")
            save(name, fit(directory / name, processes, callback=callback))
        else:
            raise SystemExit(f"unknown {name}")


if __name__ == "__main__":
    main()
