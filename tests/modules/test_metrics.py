"""A classifier logs any metrics of torchmetrics next to loss and accuracy."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP


def fit(module: Classifier, classes: int, **options: Any) -> L.Trainer:
    x = torch.randn(64, 8)
    y = x[:, :classes].argmax(1) if classes > 2 else (x[:, 0] > 0).float()
    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", **options
    )
    trainer.fit(module, loader, loader)
    return trainer


def test_metrics_are_logged_over_whole_epochs_also_across_a_split() -> None:
    metrics = {"micro": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)}
    module = Classifier(MLP(8, 4, 3), metrics=metrics)
    logged = fit(
        module, 3, callbacks=[ExpansionCallback(alpha=2, epoch=1)], enable_checkpointing=False
    ).callback_metrics
    assert float(logged["val/micro"]) == pytest.approx(float(logged["val/accuracy"]))
    assert 0 <= float(logged["val/f1"]) <= 1


def test_the_binary_task_gives_metrics_one_logit_of_each_sample() -> None:
    module = Classifier(MLP(8, 4, 1), task="binary", metrics={"auroc": BinaryAUROC()})
    assert 0 <= float(fit(module, 2, enable_checkpointing=False).callback_metrics["val/auroc"]) <= 1


def test_a_checkpoint_has_neither_states_nor_objects_of_metrics(tmp_path: Any) -> None:
    module = Classifier(MLP(8, 4, 3), metrics={"f1": MulticlassF1Score(3)})
    fit(module, 3, default_root_dir=tmp_path)
    (path,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    assert not any("metrics" in name for name in saved["state_dict"])
    assert "metrics" not in saved["hyper_parameters"]
