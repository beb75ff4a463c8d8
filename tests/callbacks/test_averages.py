"""Averages of the weights are split together with the module, wherever their callback stands, and resume with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, equal, network, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.optim.swa_utils import AveragedModel

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks, mask_of, record_of

AVERAGES: dict[str, Callable[[], pl.Callback]] = {
    "EMA": lambda: EMAWeightAveraging(decay=0.8),
    "EMA late": lambda: EMAWeightAveraging(decay=0.8, update_starting_at_step=10),
    "EMA without buffers": lambda: EMAWeightAveraging(decay=0.8, use_buffers=False),
    "mean": lambda: WeightAveraging(use_buffers=False),
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1),
    "SWA early": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1),
}


def fit(name: str, ours_first: bool, directory: Path, ckpt_path: Path | None = None) -> pl.Trainer:
    ours, average = ExpansionCallback(epoch=[1, 2]), AVERAGES[name]()
    callbacks = [ours, average] if ours_first else [average, ours]
    saving = ModelCheckpoint(directory, filename="{epoch}", save_top_k=-1)
    run = trainer(*callbacks, saving, directory=directory, max_epochs=4)
    run.fit(Plain(), resumable(), resumable(), ckpt_path=ckpt_path)
    return run


@pytest.mark.parametrize("ours_first", [True, False], ids=["listed after ours", "listed before ours"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("EMA", "SWA") else [pytest.mark.slow]) for name in AVERAGES]
)
def test_averaging_callbacks(name: str, ours_first: bool, tmp_path: Path) -> None:
    run = fit(name, ours_first, tmp_path)
    module = run.lightning_module
    assert module.net[0].out_features == 24
    check_masks(module)
    expected = outcome(run)
    for epoch in (0, 1, 2):
        resumed = fit(name, ours_first, tmp_path / "again", tmp_path / f"epoch={epoch}.ckpt")
        assert equal(outcome(resumed), expected), f"after epoch {epoch}"


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_mean_over_buffers_is_refused(ours_first: bool) -> None:
    callbacks = [ExpansionCallback(epoch=1), WeightAveraging()]
    run = trainer(*(callbacks if ours_first else callbacks[::-1]))
    with pytest.raises(MisconfigurationException, match=r"WeightAveraging averages buffers .* `use_buffers=False`"):
        run.fit(Plain(), resumable())
    assert run.global_step == 0


def test_the_average_is_what_an_average_from_hand_is(tmp_path: Path) -> None:
    """An EMA that is split by its own repeated rows and the module's masks, kept next to the callback's."""

    class ByHand(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.weights = {name: p.detach().clone() for name, p in pl_module.net.named_parameters()}
            self.steps = 0

        def on_after_expansion(self, trainer: pl.Trainer, pl_module: Any, report: Any) -> None:
            first, norm, last = pl_module.net[0], pl_module.net[1], pl_module.net[3]
            self.weights["0.weight"] = self.weights["0.weight"].repeat_interleave(2, 0) * mask_of(first)
            for name in ("0.bias", "1.weight", "1.bias"):
                self.weights[name] = self.weights[name].repeat_interleave(2)
            mask = mask_of(last)
            self.weights["3.weight"] = self.weights["3.weight"].repeat_interleave(2, 1)
            if mask is not None:
                self.weights["3.weight"] *= mask
            assert norm.num_features == first.out_features

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            for name, p in pl_module.net.named_parameters():
                new = p.detach().clone()
                self.weights[name] = new if self.steps == 0 else self.weights[name].lerp(new, 0.2)
            self.steps += 1

    hand, ema = ByHand(), EMAWeightAveraging(decay=0.8)
    run = trainer(ema, ExpansionCallback(epoch=[1, 2]), hand, max_epochs=3)
    run.fit(Plain(), resumable())
    for name, p in run.lightning_module.net.named_parameters():
        assert torch.allclose(p, hand.weights[name], atol=1e-6), name


def test_averages_are_split_by_hand_too() -> None:
    model = network()
    average = AveragedModel(model)
    with torch.no_grad():
        average.module[0].weight.add_(1)
    before = average.module[0].weight.detach().clone()
    fpe.expand(model, alpha=2, example_inputs=torch.zeros(2, 48), averages=[average.module])
    mask = mask_of(model[0])
    assert mask is not None
    assert torch.equal(average.module[0].weight, before.repeat_interleave(2, 0) * mask)
    assert torch.equal(mask_of(average.module[0]), mask)
    assert record_of(average.module[0]) == record_of(model[0])
    average.update_parameters(model)
    check_masks(average)


def test_an_average_of_another_structure_is_refused_and_nothing_changes() -> None:
    model, other = network(), network(width=7)
    states = copy.deepcopy((model.state_dict(), other.state_dict()))
    with pytest.raises(
        ValueError, match=r"An average of the model has `0.weight` of shape \(7, 48\), and the model has \(6"
    ):
        fpe.expand(model, alpha=2, example_inputs=torch.zeros(2, 48), averages=[network(), other])
    assert equal(states, (model.state_dict(), other.state_dict()))
