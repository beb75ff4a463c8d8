"""After a split batch norms average the batches that children really see, and then go on as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, equal, loader, outcome, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from fpe_lightning.callbacks import BatchNormReestimation, ExpansionCallback
from fpe_lightning.callbacks.batch_norm import restart_statistics


class Seen(pl.Callback):
    """Keeps the means of what the norm reads in each batch, and its running mean after it."""

    def __init__(self) -> None:
        self.means: list[Tensor] = []
        self.running: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.norm = pl_module.net[1]
        self.norm.register_forward_pre_hook(lambda _, inputs: self.means.append(inputs[0].detach().mean(0)))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.running.append(self.norm.running_mean.clone())


def test_statistics_are_the_average_of_the_batches_since_the_split_and_then_move_on() -> None:
    seen = Seen()
    callbacks = [ExpansionCallback(step=6), BatchNormReestimation(), seen]
    trainer(*callbacks).fit(Plain(), loader())
    for count in range(1, 11):  # 1 / momentum batches
        expected = torch.stack(seen.means[6 : 6 + count]).mean(0)
        torch.testing.assert_close(seen.running[5 + count], expected, rtol=1e-4, atol=1e-6)
    assert seen.norm.momentum == 0.1
    torch.testing.assert_close(seen.running[16], 0.9 * seen.running[15] + 0.1 * seen.means[16])


def test_without_it_children_keep_the_statistics_of_their_parents() -> None:
    seen = Seen()
    trainer(ExpansionCallback(step=6), seen).fit(Plain(), loader())
    expected = 0.9 * seen.running[5].repeat_interleave(2) + 0.1 * seen.means[6]
    torch.testing.assert_close(seen.running[6], expected)


@pytest.mark.parametrize("step", [3, 6, 9, 12, 15])
def test_a_run_resumes_while_statistics_are_averaged(step: int, tmp_path: Path) -> None:
    def callbacks() -> list[pl.Callback]:
        return [ExpansionCallback(step=[6, 12]), BatchNormReestimation()]

    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=3)
    whole = trainer(*callbacks(), saving, directory=tmp_path)
    whole.fit(Plain(), resumable())
    resumed = trainer(*callbacks())
    resumed.fit(Plain(), resumable(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert equal(outcome(resumed), outcome(whole))


@pytest.mark.parametrize("raises", [False, True])
def test_the_momentum_is_given_back_when_a_run_ends_early(raises: bool) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 8:
                if raises:
                    raise RuntimeError("stopped")
                trainer.should_stop = True

    module = Plain()
    run = trainer(ExpansionCallback(step=6), BatchNormReestimation(), Stops(), min_epochs=0)
    if raises:
        with pytest.raises(RuntimeError, match="stopped"):
            run.fit(module, loader())
    else:
        run.fit(module, loader())
    assert module.net[1].momentum == 0.1


def test_norms_that_do_not_train_or_keep_nothing_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2).eval())
    model[2].running_mean.fill_(3.0)
    assert restart_statistics(model) == {"0": 0.1}
    assert model[1].momentum == model[2].momentum == 0.1
    assert model[2].running_mean.tolist() == [3.0, 3.0]
