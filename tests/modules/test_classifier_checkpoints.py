"""Checkpoints of a Classifier load at every stage, with and without a Trainer."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP
from fpe_lightning.sparse import check_masks

X = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, torch.arange(24) % 3), batch_size=8)


def split_run(directory: Path, **options: object) -> tuple[Classifier, Path]:
    model = Classifier(MLP(48, 6, 3), optimizer=partial(torch.optim.SGD, lr=0.1))
    run = Trainer(
        max_epochs=2,
        callbacks=[ExpansionCallback(epoch=1)],
        default_root_dir=directory,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,  # type: ignore[arg-type]
    )
    run.fit(model, loader())
    run.save_checkpoint(directory / "split.ckpt")
    return model, directory / "split.ckpt"


def test_load_from_checkpoint_of_a_module_made_in_python(tmp_path: Path) -> None:
    model, path = split_run(tmp_path)
    loaded = Classifier.load_from_checkpoint(path, network=MLP(48, 6, 3), map_location="cpu", weights_only=True)
    assert loaded.network.layers[0].out_features == 12
    assert torch.equal(loaded.eval()(X), model.eval()(X))
    check_masks(loaded)


def test_load_from_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    _, path = split_run(tmp_path)
    with pytest.raises(ValueError, match=r"another network: `network.layers.0.weight` .* \(6, 48\) .* \(5, 48\)"):
        Classifier.load_from_checkpoint(path, network=MLP(48, 5, 3))


@pytest.mark.slow
def test_load_from_checkpoint_of_a_run_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fpe_lightning.cli import CLI

    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
model:
  class_path: fpe_lightning.modules.Classifier
  init_args:
    task: binary
    network: {{class_path: fpe_lightning.networks.MLP, init_args: {{in_features: 48, hidden: 6, out_features: 1}}}}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.1}}}}
data:
  class_path: fpe_lightning.data.BooleanDataModule
  init_args: {{inputs: 48, train_size: 32, val_size: 32, test_size: 32, batch_size: 8}}
trainer:
  max_epochs: 2
  accelerator: cpu
  limit_train_batches: 2
  limit_val_batches: 1
  limit_test_batches: 1
  enable_progress_bar: false
  logger: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: fpe_lightning.callbacks.ExpansionCallback
      init_args: {{epoch: 1, alpha: 2}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {tmp_path}, save_last: true}}
"""
    )
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(config)])
    CLI()
    loaded = Classifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.network.layers[0].out_features == 12
    assert loaded(torch.zeros(2, 48)).shape == (2, 1)
