"""Ways of training that a project may use: each goes through a split, keeps the budget, and resumes to the same end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from boring import Plain, Run, equal, network, outcome, resumable, trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as lrs

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"detect_anomaly": True, "deterministic": True, "gradient_clip_val": 0.1, "log_every_n_steps": 1},
    ],
    ids=str,
)
def test_options_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    Run(Plain, tmp_path, **options).resumes(4)


def test_double_precision(tmp_path: Path) -> None:
    """No resume: Lightning loads weights before it makes the module double, with or without a split."""
    assert Run(Plain, tmp_path, precision="64-true")()["model"]["net.0.weight"].dtype == torch.float64


class Accumulated(pl.Callback):
    """Notes the gradient that waits for its step when a split comes."""

    def on_before_expansion(self, trainer: pl.Trainer, pl_module: Any, sites: Any) -> None:
        self.before = pl_module.net[3].bias.grad, pl_module.net[0].bias.grad

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: Any, report: Any) -> None:
        assert pl_module.net[3].bias.grad is self.before[0]
        assert torch.equal(pl_module.net[0].bias.grad, self.before[1].repeat_interleave(2))


def test_a_split_in_the_middle_of_gradient_accumulation_keeps_what_was_gathered() -> None:
    # 6 batches an epoch, steps after 4 and 6: half of the run is after batch 9, in the middle of the second step.
    callback, noted = ExpansionCallback(fraction=0.75), Accumulated()
    run = trainer(callback, noted, max_epochs=2, accumulate_grad_batches=4)
    run.fit(Plain(), resumable())
    assert len(callback.reports) == 1
    assert noted.before[0].abs().sum() > 0
    check_masks(run.lightning_module)


def test_accumulation_resumes(tmp_path: Path) -> None:
    Run(Plain, tmp_path, accumulate_grad_batches=2, max_epochs=4).resumes(6)


class GAN(Plain):
    """Manual optimization of two networks in turn, each with its own optimizer and scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Sequential(*network(seed=1)[:2], nn.LeakyReLU(), nn.Linear(6, 1))
        self.net[3] = nn.Linear(6, 48)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        critic, generator = self.optimizers()
        fake = self.net(x.flip(0))
        for optimizer, loss in (
            (critic, lambda: self.critic(fake.detach()).mean() - self.critic(x).mean()),
            (generator, lambda: -self.critic(fake).mean()),
        ):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss())
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [optim.Adam(self.critic.parameters(), lr=0.01), optim.RMSprop(self.net.parameters(), lr=0.01)]
        return optimizers, [lrs.StepLR(each, 1, 0.5) for each in optimizers]


@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
def test_manual_optimization_of_two_networks(tmp_path: Path) -> None:
    def run(step: int | None = None) -> tuple[GAN, dict[str, Any]]:
        saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=4)
        callback = ExpansionCallback(fraction=0.5, sites=["critic.0", "net.0"])
        fitted = trainer(callback, saving, directory=tmp_path, max_epochs=2)
        module = GAN()
        module.net[3] = nn.Linear(6, 48)
        torch.nn.init.constant_(module.net[3].weight, 0.1)
        torch.nn.init.zeros_(module.net[3].bias)
        fitted.fit(module, resumable(), ckpt_path=tmp_path / f"step={step}.ckpt" if step else None)
        if callback.reports:
            assert fitted.current_epoch == 2
        return module, outcome(fitted)

    module, expected = run()
    assert (module.critic[0].out_features, module.net[0].out_features) == (12, 12)
    check_masks(module)
    for step in (8, 16):
        assert equal(run(step)[1], expected)


def test_checkpoints_of_every_kind_and_early_stopping(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_top_k=2, save_last=True)
    often = ModelCheckpoint(tmp_path / "often", every_n_train_steps=2, save_top_k=1, monitor="step", mode="max")
    stop = EarlyStopping("val_loss", patience=0, mode="max")
    run = trainer(ExpansionCallback(epoch=1), best, often, stop, directory=tmp_path, max_epochs=9)
    run.fit(Plain(), resumable(), resumable())
    assert 1 < run.current_epoch < 9, "early stopping has no part in it"
    for path in (best.best_model_path, best.last_model_path, often.best_model_path):
        module = Plain()
        trainer(ExpansionCallback(epoch=1)).test(module, resumable(), ckpt_path=path, verbose=False)
        assert equal(dict(module.state_dict()), torch.load(path, weights_only=True)["state_dict"])


def test_monitors_bars_and_summaries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning.pytorch.callbacks import (
        GradientAccumulationScheduler,
        RichModelSummary,
        RichProgressBar,
        Timer,
        TQDMProgressBar,
    )
    from lightning.pytorch.loggers import CSVLogger

    for bar in (RichProgressBar(), TQDMProgressBar()):
        run = trainer(
            *(ExpansionCallback(epoch=1), bar, RichModelSummary(max_depth=2), LearningRateMonitor(), Timer()),
            GradientAccumulationScheduler({0: 1, 1: 2}),
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
            enable_progress_bar=True,
            enable_model_summary=True,
            max_epochs=2,
        )
        run.fit(Plain(), resumable(), resumable())
        assert run.lightning_module.net[0].out_features == 12
    assert "327" in capsys.readouterr().out


class Tunable(Plain):
    """Says its batch size and learning rate, as the finders want."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size, self.lr = 2, 0.01

    def train_dataloader(self) -> Any:
        return resumable(self.batch_size)

    def val_dataloader(self) -> Any:
        return resumable()

    def configure_optimizers(self) -> Any:
        return optim.Adam(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("epoch", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_finders_of_batch_size_and_learning_rate(epoch: int, ours_first: bool, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

    for finder in (
        BatchSizeFinder(max_trials=2, steps_per_trial=2),
        LearningRateFinder(num_training_steps=12, early_stop_threshold=None),
    ):
        callback = ExpansionCallback(epoch=epoch)
        run = trainer(*([callback, finder] if ours_first else [finder, callback]), directory=tmp_path, max_epochs=2)
        module = Tunable()
        run.fit(module)
        assert module.net[0].out_features == 12
        assert len(callback.reports) == 1
        check_masks(module)
        held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
        assert held == {id(p) for p in module.parameters()}


def test_frozen_and_finetuned_parts(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Backbone(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*network()[:3], nn.Linear(6, 48))
            self.net = network(seed=2)

        def step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(self.backbone(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)

    callback = ExpansionCallback(epoch=[1, 2], sites="net.*")
    run = trainer(BackboneFinetuning(1, verbose=False), callback, max_epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fpe.ExpansionWarning)
        run.fit(Backbone(), resumable())
    module = run.lightning_module
    assert (module.net[0].out_features, module.backbone[0].out_features) == (24, 6)
    check_masks(module)
    assert sum(len(group["params"]) for group in run.optimizers[0].param_groups) == len(list(module.parameters()))
