"""The table at the end of a run says what the split did, and measuring for it does not change training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from boring import Plain, equal, loader, outcome, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torchmetrics.classification import MulticlassAccuracy

from fpe_lightning.callbacks import ExpansionCallback, RunSummary
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(MLP(48, 6, 3))


def test_table_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    run = trainer(ExpansionCallback(epoch=1), best, RunSummary(), directory=tmp_path, max_epochs=2)
    run.fit(classifier(), loader(), loader())
    run.test(run.lightning_module, loader(), ckpt_path="best", verbose=False)
    shown = capsys.readouterr().out
    for text in (
        "non-zero parameters at the start",
        "val/accuracy just before the split at epoch 1",
        "val/accuracy just after it, before any training",
        "width of network.layers.0",
        "6 -> 12",
        "315 -> 315",
        "best val/accuracy",
        "test/accuracy",
    ):
        assert text in shown, text


def test_measuring_changes_nothing() -> None:
    def run(*callbacks: RunSummary) -> dict:
        fitted = trainer(ExpansionCallback(epoch=1), *callbacks, max_epochs=2)
        fitted.fit(classifier(), loader(), loader())
        return outcome(fitted)

    assert equal(run(), run(RunSummary()))


def test_a_resumed_run_goes_on_with_the_table(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(ExpansionCallback(epoch=1), saving, RunSummary(), directory=tmp_path, max_epochs=2).fit(
        classifier(), resumable(), loader()
    )
    summary = RunSummary()
    run = trainer(ExpansionCallback(epoch=1), summary, max_epochs=3)
    run.fit(classifier(), resumable(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert [name for name, _ in summary.rows].count("width of network.layers.0") == 1


def test_without_a_fit_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(RunSummary()).test(classifier(), loader(), verbose=False)
    assert "Summary" not in capsys.readouterr().out


def test_a_metric_of_that_name_is_no_method() -> None:
    class WithMetric(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy = MulticlassAccuracy(3)

        def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
            self.log("val/accuracy", self.accuracy(self.net(batch[0]), batch[1]))

    summary = RunSummary()
    trainer(ExpansionCallback(epoch=1), summary, max_epochs=2).fit(WithMetric(), loader(), loader())
    names = [name for name, _ in summary.rows]
    assert "non-zero parameters" in names
    assert not any("just before" in name for name in names)
