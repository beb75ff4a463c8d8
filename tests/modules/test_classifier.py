"""The classifier: what it logs, what its checkpoints hold, its schedulers, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data import BooleanDataModule
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP, SmallCNN


def trainer(**settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{"accelerator": "cpu", "enable_model_summary": False, "max_epochs": 1, **quiet, **settings})


def boolean(**settings: Any) -> BooleanDataModule:
    return BooleanDataModule(**{"train_size": 64, "val_size": 32, "test_size": 32, "batch_size": 16, **settings})


@pytest.mark.parametrize("task", ["multiclass", "binary"])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_loss_and_accuracy_are_those_of_all_rows_whatever_the_batches(task: str, stage: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(11, 6), torch.randint(2 if task == "binary" else 3, (11,))
    model = Classifier(MLP(6, 4, 1 if task == "binary" else 3), task=task)  # type: ignore[arg-type]
    run = trainer()
    (run.validate if stage == "val" else run.test)(model, DataLoader(TensorDataset(x, y), batch_size=4), verbose=False)
    with torch.no_grad():
        logits = model(x)
    if task == "binary":
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], y.float())
        right = (logits[:, 0] > 0) == (y == 1)
    else:
        loss, right = F.cross_entropy(logits, y), logits.argmax(1) == y
    assert float(run.callback_metrics[f"{stage}/loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert float(run.callback_metrics[f"{stage}/accuracy"]) == pytest.approx(float(right.float().mean()), rel=1e-6)


def test_training_metrics_are_of_the_training_rows_and_not_mixed_with_validation() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(11, 6), torch.randint(3, (11,))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    model = Classifier(MLP(6, 4, 3), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    run = trainer(val_check_interval=1)  # validation in the middle of the epoch
    run.fit(model, loader, DataLoader(TensorDataset(x[:2], y[:2])))
    with torch.no_grad():
        expected, first = float(F.cross_entropy(model(x), y)), float(F.cross_entropy(model(x[:2]), y[:2]))
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(run.callback_metrics["train/accuracy"]) == pytest.approx(model.accuracy(loader))
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(first, rel=1e-6)


def test_predictions_are_class_numbers_with_and_without_labels() -> None:
    x = torch.randn(5, 6)
    for model in (Classifier(MLP(6, 4, 3)), Classifier(MLP(6, 4, 1), task="binary")):
        classes = model.predict_step(x, 0)
        assert classes.dtype == torch.int64
        assert torch.equal(classes, model.predict_step((x, torch.zeros(5)), 0))
    assert set(classes.tolist()) <= {0, 1}


@pytest.mark.parametrize("training", [True, False])
def test_accuracy_outside_of_a_loop_keeps_the_mode_and_makes_no_gradients(training: bool) -> None:
    model = Classifier(MLP(6, 4, 3, batch_norm=True, dropout=0.5)).train(training)
    x, y = torch.randn(7, 6), torch.randint(3, (7,))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy = model.accuracy([(x[:5], y[:5]), (x[5:], y[5:])])
    assert model.training is training
    assert model.network.training is training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert accuracy == pytest.approx(float((model.eval()(x).argmax(1) == y).float().mean()))


def test_a_module_made_in_python_keeps_plain_hyper_parameters_and_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Classifier(MLP(24, 8, 1), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1), task="binary")
    assert dict(model.hparams) == dict(model.hparams_initial) == {"scheduler_interval": "epoch", "task": "binary"}
    run = trainer(callbacks=[ExpansionCallback(alpha=2, epoch=1)], max_epochs=2)
    run.fit(model, datamodule=boolean())
    run.save_checkpoint(tmp_path / "wide.ckpt")
    assert torch.load(tmp_path / "wide.ckpt", weights_only=True)["hyper_parameters"]["task"] == "binary"
    again = Classifier.load_from_checkpoint(tmp_path / "wide.ckpt", network=MLP(24, 8, 1))
    assert again.network.layers[0].out_features == 16
    assert again.task == "binary"
    x = torch.randn(3, 24)
    assert torch.equal(again.eval()(x), model.eval()(x))


def test_a_subclass_keeps_its_own_hyper_parameters() -> None:
    class Tempered(Classifier):
        def __init__(self, network: torch.nn.Module, temperature: float) -> None:
            super().__init__(network)
            self.temperature = temperature

    assert Tempered(MLP(6, 4, 3), 2.0).hparams["temperature"] == 2.0
    assert "network" not in Tempered(MLP(6, 4, 3), 2.0).hparams


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 2), ("step", 8)])
def test_a_scheduler_steps_each_epoch_or_each_step(interval: Any, steps: int) -> None:
    model = Classifier(
        MLP(24, 8, 1),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        scheduler_interval=interval,
        task="binary",
    )
    run = trainer(max_epochs=2)
    run.fit(model, datamodule=boolean())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.5**steps


def test_reduce_on_plateau_follows_its_metric() -> None:
    model = Classifier(
        MLP(24, 8, 1),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        scheduler=lambda optimizer: ReduceLROnPlateau(
            optimizer, monitor="val/loss", patience=0, factor=0.5, threshold=1e9, threshold_mode="abs"
        ),
        task="binary",
    )
    run = trainer(max_epochs=3)
    run.fit(model, datamodule=boolean())
    assert run.lr_scheduler_configs[0].monitor == "val/loss"
    assert run.optimizers[0].param_groups[0]["lr"] == 0.125  # no epoch improves by the threshold


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            MLP(23, 8, 1),
            "has 23 inputs, and BooleanDataModule gives 24: set `--model.network.init_args.in_features=24`",
        ),
        (MLP(24, 8, 3), "has 3 outputs, and BooleanDataModule gives 1: set `--model.network.init_args.out_features=1`"),
        (SmallCNN(num_classes=3), "has 3 outputs, and BooleanDataModule gives 1: build the network with 1"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(network: torch.nn.Module, message: str) -> None:
    model = Classifier(network, task="binary")
    for verb in ("fit", "validate", "test"):
        with pytest.raises(MisconfigurationException, match=message):
            getattr(trainer(), verb)(model, datamodule=boolean())


def test_a_network_without_sizes_is_left_to_fail_or_fit_by_itself() -> None:
    trainer(fast_dev_run=True).fit(
        Classifier(torch.nn.Sequential(torch.nn.Linear(24, 1)), task="binary"), datamodule=boolean()
    )
    assert not isinstance(SmallCNN().in_features, int)  # pictures are not compared with a number of features


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "regression"}, "`task` has to be 'multiclass' or 'binary', found 'regression'"),
        ({"scheduler_interval": "batch"}, "`scheduler_interval` has to be 'epoch' or 'step', found 'batch'"),
    ],
)
def test_unknown_choices_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        Classifier(MLP(6, 4, 3), **settings)
