"""The parent trains as a run without a split does, and the run itself does not notice it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, equal, loader, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import fpe_lightning as fpe
from fpe_lightning.callbacks import CompareWithParent, ExpansionCallback
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP


class Noisy(Plain):
    """Dropout, a metric object, a schedule of steps, and hooks that keep state of an epoch."""

    def __init__(self) -> None:
        super().__init__(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.7))
        self.net.insert(3, nn.Dropout(0.3))
        self.accuracy = MulticlassAccuracy(3)
        self.losses: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("val_accuracy", self.accuracy)
        self.losses.append(self.step(batch))

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", torch.stack(self.losses).mean())
        self.losses.clear()


class Quiet(Noisy):
    """Without random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        del self.net[3]


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    torch.manual_seed(1)
    run = trainer(*callbacks, **options)
    run.fit(module, resumable(), loader())
    return run


def parent_of(compare: CompareWithParent) -> pl.LightningModule:
    assert compare._parent is not None
    return compare._parent.module


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_the_run_does_not_notice(options: dict[str, Any]) -> None:
    alone = fit(Noisy(), ExpansionCallback(epoch=1), **options)
    compared = fit(Noisy(), ExpansionCallback(epoch=1), CompareWithParent(), **options)
    assert equal(outcome(alone), outcome(compared))


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}]
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_parent_trains_as_a_run_without_a_split(options: dict[str, Any], order: int) -> None:
    compare = CompareWithParent()
    dense = fit(Quiet(), **options)
    split = fit(Quiet(), *[ExpansionCallback(step=[2, 3]), compare][::order], **options)
    assert split.lightning_module.net[0].out_features == 24
    assert equal(dict(parent_of(compare).state_dict()), dict(dense.lightning_module.state_dict()))
    assert fpe.count_nonzeros(parent_of(compare)) == fpe.count_nonzeros(split.lightning_module)
    for name in ("loss", "val_loss", "val_accuracy"):
        assert split.callback_metrics[f"parent/{name}"] == dense.callback_metrics[name]


def test_plateau_schedules_follow_the_parents_own_metric() -> None:
    def make() -> Plain:
        def scheduler(optimizer: Any) -> Any:
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
            return {"scheduler": plateau, "monitor": "val_loss"}

        return Plain(lambda p: torch.optim.SGD(p, lr=1.0), scheduler)

    compare = CompareWithParent()
    dense = fit(make(), max_epochs=8)
    fit(make(), ExpansionCallback(epoch=1), compare, max_epochs=8)
    assert compare._parent is not None
    rate = compare._parent.optimizers[0].param_groups[0]["lr"]
    assert rate == dense.optimizers[0].param_groups[0]["lr"] < 1.0


@pytest.mark.parametrize("step", [3, 7, 12, 15])
def test_resumes_bit_by_bit(tmp_path: Path, step: int) -> None:
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    first, second = CompareWithParent("val_accuracy"), CompareWithParent("val_accuracy")
    fit(Quiet(), ExpansionCallback(epoch=[1, 2]), first, saving, directory=tmp_path, max_epochs=3)
    run = trainer(ExpansionCallback(epoch=[1, 2]), second, max_epochs=3)
    run.fit(Quiet(), resumable(), loader(), ckpt_path=tmp_path / f"step={step}.ckpt")
    expected, found = first.state_dict(), second.state_dict()
    if step == 12:  # Lightning does not validate again an epoch whose last step is in the checkpoint
        assert expected["comparison"]["curves"]["val_accuracy"].pop(1)[0] == 2.0
    assert equal(expected, found)


def test_the_run_ends_with_a_table_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    compare = CompareWithParent()
    best = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    run = trainer(ExpansionCallback(epoch=1), compare, best, directory=tmp_path, max_epochs=3)
    run.fit(Classifier(MLP(48, 6, 3)), loader(), loader())
    shown = capsys.readouterr().out
    for text in (
        "dense parent",
        "split network",
        "difference",
        "val/accuracy",
        "315",
        "x2",
        "Split before",
    ):
        assert text in shown, text
    assert compare.figure_path == tmp_path / "compare_with_parent.png"
    assert compare.figure_path.stat().st_size > 10_000
    latest = {name: value.clone() for name, value in parent_of(compare).state_dict().items()}
    (tested,) = run.test(run.lightning_module, loader(), ckpt_path="best", verbose=False)
    assert "test/accuracy" in capsys.readouterr().out
    # The best epoch of the parent was tested, and the latest weights are back.
    assert equal(dict(parent_of(compare).state_dict()), latest)
    with torch.no_grad():
        parent_of(compare).load_state_dict(compare._best)
        accuracy = parent_of(compare).eval().accuracy(loader())
    assert tested["parent/test/accuracy"] == pytest.approx(accuracy)


def test_without_a_split_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    compare = CompareWithParent()
    fit(Plain(), compare, max_epochs=1)
    assert compare._parent is None
    assert "dense parent" not in capsys.readouterr().out


def test_refusals() -> None:
    class Manual(Plain):
        automatic_optimization = property(lambda self: False)  # type: ignore[assignment]

    with pytest.raises(MisconfigurationException, match="steps its optimizers itself"):
        fit(Manual(), CompareWithParent())
    with pytest.raises(MisconfigurationException, match="'min' or 'max', found 'best'"):
        CompareWithParent(mode="best")
    with pytest.raises(MisconfigurationException, match="a metric's name, found 3"):
        CompareWithParent(monitor=3)  # type: ignore[arg-type]

    class Uncopied(Plain):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("holds a lock")

    with pytest.raises(MisconfigurationException, match="cannot be copied \\(holds a lock\\)"):
        fit(Uncopied(), CompareWithParent())
