"""A resumed run ends as the uninterrupted one, bit by bit, wherever it stopped; any checkpoint loads at any stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, equal, loader, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, SaturationTrigger


def plain() -> Plain:
    return Plain(scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5))


def splits() -> ExpansionCallback:
    """Widths 6, 12, 24 and 48 from epoch 1, 2 and 3 on; the last split comes in the middle of the epoch."""
    return ExpansionCallback(alpha=2, step=[6, 12, 21])


def checkpoints(directory: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(directory, filename="{step}", save_top_k=-1, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of 30 steps with three splits, and a checkpoint after every third step."""
    directory = tmp_path_factory.mktemp("runs")
    run = trainer(splits(), checkpoints(directory, every_n_train_steps=3), directory=directory, max_epochs=5)
    run.fit(plain(), resumable())
    return directory, outcome(run)


# Splits happen before the steps that follow 6, 12 and 21: from before, at and after each, at the ends and in the middle
# of epochs (of 6 steps).
@pytest.mark.parametrize("step", [3, 6, 9, 12, 15, 18, 21, 24, 30])
def test_resumed_run_is_bit_identical(uninterrupted: tuple[Path, dict[str, Any]], step: int) -> None:
    directory, expected = uninterrupted
    callback = splits()
    run = trainer(callback, max_epochs=5)
    run.fit(plain(), resumable(), ckpt_path=directory / f"step={step}.ckpt")
    assert len(callback.reports) == 3 - sum(step > moment for moment in (6, 12, 21))
    assert run.lightning_module.net[0].out_features == 48
    assert equal(outcome(run), expected)


@pytest.mark.parametrize(("step", "width"), [(6, 6), (9, 12), (15, 24), (24, 48)])
def test_checkpoints_of_any_stage_are_tested_in_a_wide_and_in_a_narrow_module(
    uninterrupted: tuple[Path, dict[str, Any]], step: int, width: int
) -> None:
    directory, _ = uninterrupted
    path = directory / f"step={step}.ckpt"
    wide = plain()
    fpe.load_expanded_state_dict(wide, torch.load(directory / "step=18.ckpt", weights_only=True)["state_dict"])
    results = []
    for module in (plain(), wide):
        results.append(trainer(splits()).test(module, loader(), ckpt_path=path, verbose=False))
        assert module.net[0].out_features == width
        predictions = trainer(splits()).predict(module, loader(), ckpt_path=path)
        assert predictions is not None
    assert results[0] == results[1]


def test_best_checkpoint_may_be_narrower_than_the_trained_module(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="loss", mode="max")  # the first is the worst, and "best"
    run = trainer(ExpansionCallback(step=8), best, directory=tmp_path)
    module = plain()
    run.fit(module, loader())
    assert module.net[0].out_features == 12
    run.test(module, loader(), ckpt_path="best", verbose=False)
    assert module.net[0].out_features == 6
    saved = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert equal(dict(module.state_dict()), dict(saved))


def test_weights_only_checkpoints_are_tested(tmp_path: Path) -> None:
    saving = checkpoints(tmp_path, every_n_train_steps=12, save_weights_only=True)
    run = trainer(ExpansionCallback(step=8), saving, directory=tmp_path, max_epochs=2)
    run.fit(plain(), loader())
    expected = run.test(run.lightning_module, loader(), verbose=False)
    module = plain()
    found = trainer(ExpansionCallback(step=8)).test(
        module, loader(), ckpt_path=tmp_path / "step=12.ckpt", verbose=False
    )
    assert module.net[0].out_features == 12
    assert found == expected


def test_a_checkpoint_made_without_the_callback_goes_on_with_it(tmp_path: Path) -> None:
    run = trainer(checkpoints(tmp_path, every_n_train_steps=6), directory=tmp_path, max_epochs=1)
    run.fit(plain(), loader())
    callback = ExpansionCallback(epoch=2)
    run = trainer(callback)
    run.fit(plain(), loader(), ckpt_path=tmp_path / "step=6.ckpt")
    assert len(callback.reports) == 1


def test_checkpoints_hold_plain_types_alone(uninterrupted: tuple[Path, dict[str, Any]]) -> None:
    saved = torch.load(uninterrupted[0] / "step=15.ckpt", weights_only=True)
    (state,) = (state for key, state in saved["callbacks"].items() if key.startswith("ExpansionCallback"))
    assert state["done"] == 2
    assert [site["name"] for site in state["widths"]["sites"]] == ["net.0"]


class Flat(Plain):
    """A metric that stops improving after the second epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", float(min(self.current_epoch, 1)))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_trigger_remembers_what_it_saw(tmp_path: Path, epoch: int) -> None:
    def run(ckpt_path: Path | None = None) -> tuple[list, dict[str, Any]]:
        callback = ExpansionCallback(trigger=SaturationTrigger("val/accuracy", patience=2))
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fitted = trainer(callback, saving, directory=tmp_path, max_epochs=6)
        fitted.fit(Flat(), loader(), loader(), ckpt_path=ckpt_path)
        return callback.reports, outcome(fitted)

    reports, expected = run()
    assert len(reports) == 1
    _, resumed = run(tmp_path / f"epoch={epoch}.ckpt")
    assert equal(resumed, expected)


class Deep(Plain):
    """Two hidden layers that can be split."""

    def __init__(self) -> None:
        super().__init__()
        self.net.append(torch.nn.Tanh())
        self.net.append(torch.nn.Linear(3, 3))
        self.net[3] = torch.nn.Linear(6, 12)
        self.net[5] = torch.nn.Linear(12, 3)


def test_two_callbacks_keep_their_own_counts(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None) -> dict[str, Any]:
        torch.manual_seed(0)
        callbacks = [
            ExpansionCallback(fpe.Expansion(prune="incoming"), sites="net.0", epoch=1),
            ExpansionCallback(fpe.Expansion(prune="total"), sites="net.3", step=[9, 15]),
        ]
        saving = checkpoints(tmp_path, every_n_train_steps=3)
        fitted = trainer(*callbacks, saving, directory=tmp_path, max_epochs=3)
        fitted.fit(Deep(), resumable(), ckpt_path=ckpt_path)
        return outcome(fitted)

    expected = run()
    assert expected["model"]["net.3.weight"].shape == (48, 12)
    for step in (6, 12):
        assert equal(run(tmp_path / f"step={step}.ckpt"), expected)


def test_layers_that_make_room_together_resume_exactly(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None) -> tuple[dict[str, Any], tuple[int, int]]:
        torch.manual_seed(0)
        module = Deep()
        before = fpe.count_nonzeros(module)
        saving = checkpoints(tmp_path, every_n_train_steps=3)
        fitted = trainer(
            ExpansionCallback(fpe.Expansion(prune="global"), step=9), saving, directory=tmp_path, max_epochs=3
        )
        fitted.fit(module, resumable(), ckpt_path=ckpt_path)
        return outcome(fitted), (before, fpe.count_nonzeros(module))

    expected, (before, after) = run()
    assert before == after
    assert (expected["model"]["net.0.weight"].shape, expected["model"]["net.3.weight"].shape) == ((12, 48), (24, 12))
    for step in (6, 12):
        assert equal(run(tmp_path / f"step={step}.ckpt")[0], expected)


def test_the_same_callback_twice_is_refused_by_the_trainer() -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ExpansionCallback`"):
        trainer(ExpansionCallback(epoch=1), ExpansionCallback(epoch=1)).fit(plain(), loader())


def test_a_checkpoint_of_another_network_says_so(uninterrupted: tuple[Path, dict[str, Any]]) -> None:
    module = plain()
    module.net[0] = torch.nn.Linear(48, 7)
    with pytest.raises(ValueError, match=r"another network: `net.0.weight` had shape \(6, 48\) .* \(7, 48\) here"):
        trainer(splits()).test(module, loader(), ckpt_path=uninterrupted[0] / "step=9.ckpt")


def test_without_the_callback_torch_names_the_shapes(uninterrupted: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for net.0.weight"):
        trainer().test(plain(), loader(), ckpt_path=uninterrupted[0] / "step=9.ckpt")


def test_one_callback_serves_several_runs() -> None:
    callback = ExpansionCallback(epoch=1)
    for _ in range(2):
        module = plain()
        trainer(callback, max_epochs=2).fit(module, loader())
        assert module.net[0].out_features == 12
        assert len(callback.reports) == 1


def test_a_second_fit_of_the_same_trainer_does_not_repeat_a_split() -> None:
    callback = ExpansionCallback(epoch=1)
    run, module = trainer(callback, max_epochs=2), plain()
    run.fit(module, loader())
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())
    assert run.current_epoch == 3
    assert module.net[0].out_features == 12


def test_a_run_that_stops_early_says_that_a_split_is_missing() -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"ended after epoch 0, step 6, before 1 of 1 splits .* `epoch=2` was not"):
        trainer(Stop(), ExpansionCallback(epoch=2)).fit(plain(), loader())


def test_a_split_that_cannot_be_leaves_the_module_as_it_was() -> None:
    module = plain()
    run = trainer(ExpansionCallback(alpha=40, epoch=1))
    with pytest.raises(MisconfigurationException, match=r"ExpansionCallback cannot split: Splitting net.0 by alpha=40"):
        run.fit(module, loader())
    assert module.net[0].out_features == 6
    assert type(module.net[0]) is torch.nn.Linear
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._load_state_dict_pre_hooks for m in module.modules())
