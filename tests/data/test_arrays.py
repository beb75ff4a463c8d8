"""DataModules of arrays: batch sizes are checked at once, and processes share the rows without repeating one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fpe_lightning.data.arrays import ArrayDataModule, Standardize, moments


class Numbers(ArrayDataModule):
    """Rows that are told apart by their labels."""

    def setup(self, stage: str | None = None) -> None:
        for split, rows in (("train", 22), ("val", 13), ("test", 13)):
            self.arrays[split] = torch.arange(2.0 * rows).view(rows, 2) / rows, torch.arange(rows)  # type: ignore[index]


class Recorder(L.LightningModule):
    """Writes down the rows that each process sees; the buffer makes DDP synchronise in every forward pass."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.register_buffer("mask", torch.ones(2))
        self.folder, self.seen = Path(folder), {"train": [], "val": [], "test": []}  # type: ignore[var-annotated]

    def _see(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen[split].append(batch[1].tolist())
        return self.layer(batch[0] * self.mask).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._see("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._see("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._see("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_fit_end(self) -> None:
        (self.folder / f"fit-{self.global_rank}.json").write_text(json.dumps(self.seen))

    def on_test_end(self) -> None:
        (self.folder / f"test-{self.global_rank}.json").write_text(json.dumps(self.seen))


def trainer(**kwargs: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
    }
    return L.Trainer(**{**quiet, **kwargs})


@pytest.mark.slow
def test_two_processes_share_the_rows(tmp_path: Path) -> None:
    two = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 1, "default_root_dir": tmp_path}
    trainer(**two).fit(Recorder(str(tmp_path)), datamodule=Numbers(batch_size=4, eval_batch_size=3))
    trainer(**two).test(Recorder(str(tmp_path)), datamodule=Numbers(batch_size=4, eval_batch_size=3))
    fit = [json.loads((tmp_path / f"fit-{rank}.json").read_text()) for rank in (0, 1)]
    test = [json.loads((tmp_path / f"test-{rank}.json").read_text()) for rank in (0, 1)]
    for parts, rows in (
        ([part["train"] for part in fit], 22),
        ([part["val"] for part in fit], 13),
        ([part["test"] for part in test], 13),
    ):
        assert len(parts[0]) == len(parts[1])
        assert sorted(row for part in parts for batch in part for row in batch) == list(range(rows))


class Crash(L.Callback):
    """Stops the run inside the third batch of the second epoch."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if trainer.global_step == 8:
            raise RuntimeError("stopped")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")


def test_a_batch_that_an_exception_stopped_is_repeated(tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None = None, callbacks: Any = ()) -> Recorder:
        model = Recorder(str(tmp_path))
        run = trainer(max_epochs=2, callbacks=list(callbacks), default_root_dir=tmp_path)
        run.fit(model, datamodule=Numbers(batch_size=4), ckpt_path=ckpt_path)
        return model

    full = fit()
    with pytest.raises(RuntimeError, match="stopped"):
        fit(callbacks=[Crash()])
    resumed = fit(tmp_path / "stopped.ckpt")
    assert resumed.seen["train"] == full.seen["train"][8:]
    assert resumed.seen["val"] == full.seen["val"][len(full.seen["val"]) // 2 :]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), full.parameters(), strict=True))


def test_overfitting_needs_the_same_batches_in_every_epoch(tmp_path: Path) -> None:
    model = Recorder(str(tmp_path))
    trainer(overfit_batches=2, max_epochs=2).fit(model, datamodule=Numbers(batch_size=4))
    assert model.seen["train"] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_shuffled_for_training_alone() -> None:
    data = Numbers(batch_size=None)
    data.setup()
    assert [labels.tolist() for _, labels in data.train_dataloader()] != [list(range(22))]
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert [labels.tolist() for _, labels in loader] == [list(range(13))]


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
@pytest.mark.parametrize("size", [0, -1])
def test_batch_sizes_are_checked_at_once(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` has to be at least 1 \(or None\), found {size}\."):
        Numbers(**{name: size})


def test_loaders_before_setup_say_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"Numbers has no train data yet; call prepare_data\(\) and setup\(\) first"):
        Numbers().train_dataloader()


def test_moments_agree_with_numpy_whatever_the_blocks() -> None:
    features = np.random.default_rng(0).standard_normal((103, 5)).astype(np.float16)
    for rows in (7, 1000):
        mean, std = moments(features, rows=rows)
        assert np.allclose(mean, features.mean(0, dtype=np.float64), atol=1e-6)
        assert np.allclose(std, features.std(0, dtype=np.float64), atol=1e-6)
    images = np.random.default_rng(0).integers(0, 256, (11, 3, 4, 5), dtype=np.uint8)
    mean, std = moments(images, channels=True)
    assert np.allclose(mean.flatten(), images.mean((0, 2, 3)), atol=1e-3)
    assert np.allclose(std.flatten(), images.std((0, 2, 3)), atol=1e-3)


def test_constant_features_become_zero() -> None:
    features = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    assert torch.equal(Standardize(*moments(features))(features), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
