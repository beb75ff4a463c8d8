"""Lightning's own command line, with a module and a datamodule that know nothing of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch.nn.functional as F
from boring import equal, network, outcome, resumable
from lightning.pytorch.cli import LightningCLI, OptimizerCallable
from torch import Tensor, optim

from fpe_lightning.sparse import check_masks


class Module(pl.LightningModule):
    """Leaves its optimizer to the command line."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.net = network(width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Injected(Module):
    """Makes its optimizer itself, from what the command line says."""

    def __init__(self, width: int = 6, optimizer: OptimizerCallable = optim.SGD) -> None:
        super().__init__(width)
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Data(pl.LightningDataModule):
    """Six batches."""

    def train_dataloader(self) -> Any:
        return resumable()


TRAINER = """
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 4
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: fpe_lightning.callbacks.ExpansionCallback
      init_args: {epoch: [1, 3], alpha: 2}
    - class_path: ModelCheckpoint
      init_args: {dirpath: DIRECTORY, filename: "{step}", save_top_k: -1, every_n_train_steps: 3}
"""
OPTIMIZERS = {
    "automatic": """
optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
lr_scheduler: {class_path: StepLR, init_args: {step_size: 1}}
""",
    "injected": "model: {optimizer: {class_path: AdamW, init_args: {lr: 0.01}}}",
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_split_from_a_config_trains_and_resumes(kind: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(TRAINER.replace("DIRECTORY", str(tmp_path)) + OPTIMIZERS[kind])

    def fit(*args: str) -> Any:
        module = Module if kind == "automatic" else Injected
        options: Any = {"save_config_callback": None, "auto_configure_optimizers": kind == "automatic"}
        return LightningCLI(module, Data, args=["fit", "--config", str(config), *args], **options).trainer

    run = fit()
    check_masks(run.lightning_module)
    assert run.lightning_module.net[0].out_features == 24
    for step in (3, 9, 21):
        again = fit("--ckpt_path", str(tmp_path / f"step={step}.ckpt"))
        # Also an optimizer that was made before the weights were loaded holds the parameters of the wide module.
        assert outcome(again)["held"] == [[name for name, _ in again.lightning_module.named_parameters()]]
        assert equal(outcome(again), outcome(run)), f"resumed after step {step}"
