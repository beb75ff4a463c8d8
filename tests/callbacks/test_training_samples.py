"""Samples for partitions and pruning rules: the datamodule's own, or the first batches, also in a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from boring import Plain, data, equal, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, training_samples, two_splits
from fpe_lightning.callbacks.training_samples import TrainingSamples
from fpe_lightning.partitions import Interaction


class Data(pl.LightningDataModule):
    """Shuffled batches, and samples if it is given any."""

    def __init__(self, samples: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        if samples is not None:
            self.training_samples = lambda: samples

    def train_dataloader(self) -> Any:
        return resumable()


class WithoutNorm(Plain):
    """The rule that refits a classifier takes no norm before it."""

    def __init__(self) -> None:
        super().__init__()
        del self.net[1]


def interaction(**options: Any) -> ExpansionCallback:
    return ExpansionCallback(fpe.Paper(partition=Interaction(), prune="incoming"), **options)


def test_samples_of_the_datamodule_are_those_that_a_partition_is_fitted_to() -> None:
    found = []
    for callback, module in (
        (interaction(step=3), Data(data().tensors)),
        (ExpansionCallback(fpe.Paper(partition=Interaction().fit(*data().tensors), prune="incoming"), step=3), Data()),
    ):
        run = trainer(callback, max_epochs=2)
        run.fit(Plain(), datamodule=module)
        found.append(outcome(run))
    assert equal(*found)


def test_batches_up_to_the_split_are_samples_where_the_datamodule_has_none() -> None:
    class Notes(pl.Callback):
        def __init__(self) -> None:
            self.batches: list[Any] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step <= 3:
                self.batches.append(batch)

    notes, callback = Notes(), interaction(step=3)
    run = trainer(notes, callback, max_epochs=2)
    run.fit(Plain(), datamodule=Data())
    assert len(notes.batches) == 4, "the batch that the split precedes is one of them"
    x, y = (torch.cat([batch[part] for batch in notes.batches]) for part in range(2))
    other = ExpansionCallback(fpe.Paper(partition=Interaction().fit(x, y), prune="incoming"), step=3)
    again = trainer(other, max_epochs=2)
    again.fit(Plain(), datamodule=Data())
    assert equal(outcome(run), outcome(again))


@pytest.mark.parametrize("samples", [None, data().tensors], ids=["of the first batches", "of the datamodule"])
def test_two_splits_resume_by_the_same_samples(samples: Any, tmp_path: Path) -> None:
    def callbacks() -> list[ExpansionCallback]:
        return two_splits(early=0.3, again=0.7)

    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    run = trainer(*callbacks(), saving, directory=tmp_path, max_epochs=2)
    run.fit(WithoutNorm(), datamodule=Data(samples))
    module = run.lightning_module
    assert module.net[0].out_features == 24
    assert fpe.count_nonzeros(module) == fpe.count_nonzeros(WithoutNorm())
    for step in (2, 3, 4, 6, 9, 11):
        resumed = trainer(*callbacks(), max_epochs=2)
        resumed.fit(WithoutNorm(), datamodule=Data(samples), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert equal(outcome(resumed), outcome(run)), f"resumed after step {step}"


def test_samples_are_forgotten_after_the_last_split_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_samples, "SAMPLES", 10)
    counts = []

    class Watches(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            x, _ = callback.state_dict().get("samples", ([], []))
            counts.append(sum(map(len, x)))

    callback = interaction(step=[4, 6])
    trainer(Watches(), callback, max_epochs=2).fit(Plain(), datamodule=Data())
    assert counts == [4, 8, 12, 12, 12, 12, 0, 0, 0, 0, 0, 0]


class Never:
    """A trigger that never splits."""

    def should_expand(self, trainer: Any, pl_module: Any) -> bool:
        return False


def test_what_needs_no_samples_keeps_none() -> None:
    for callback in (ExpansionCallback(trigger=Never()), interaction(trigger=Never())):
        trainer(callback, max_epochs=2, limit_train_batches=2).fit(
            Plain(), datamodule=Data(data().tensors if callback.expansion == fpe.ByShape() else None)
        )
        assert ("samples" in callback.state_dict()) == (callback.expansion != fpe.ByShape())


class DictBatches(Plain):
    """Batches that do not say which tensor is what."""

    def step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(batch["x"]), batch["y"])


class DictData(Data):
    """The same batches, with names."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"x": batch[0], "y": batch[1]}


def test_batches_without_pairs_are_refused_at_the_split() -> None:
    with pytest.raises(MisconfigurationException, match=r"needs training samples .* method `training_samples\(\)`"):
        trainer(interaction(step=2), max_epochs=1).fit(DictBatches(), datamodule=DictData())
    run = trainer(interaction(step=2), max_epochs=1)
    run.fit(DictBatches(), datamodule=DictData(data().tensors))
    assert run.lightning_module.net[0].out_features == 12


def test_targets_that_are_no_classes_are_refused_at_the_split() -> None:
    x, _ = data().tensors
    for y in (torch.randn(len(x)), torch.randn(len(x), 3)):
        with pytest.raises(MisconfigurationException, match="cannot split: `targets` are class numbers"):
            trainer(interaction(step=2), max_epochs=1).fit(Plain(), datamodule=Data((x, y)))


@pytest.mark.parametrize(
    "y",
    [torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([[0.0], [1.0], [1.0], [0.0]]), torch.tensor([0, 1, 1, 0])],
    ids=["float", "column", "integer"],
)
def test_targets_of_a_binary_loss_are_classes(y: Tensor) -> None:
    samples = TrainingSamples()
    samples.add(trainer(), (torch.randn(4, 2, 3), y))
    x, classes = samples.of(trainer())
    assert x.shape == (4, 6), "pictures are rows"
    assert classes.long().tolist() == [0, 1, 1, 0]
    restored = TrainingSamples()
    restored.load_state_dict(samples.state_dict())
    assert equal(restored.of(trainer()), (x, classes))
    restored.clear()
    assert restored.state_dict() == {}
