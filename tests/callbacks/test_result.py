"""At the end of a run: how to load its checkpoints, and a file of ordinary layers."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
DATA = DataLoader(TensorDataset(X, X[:, :4]), batch_size=8)
TOLD = "everything else, such as `Lit.load_from_checkpoint`, loads them inside of `with fpe_lightning.expanded_checkp"


class Lit(pl.LightningModule):
    """A project's module that has never heard of splits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def fit(callback: ExpansionCallback, folder: Path, *callbacks: pl.Callback, **options: Any) -> Lit:
    model = Lit()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, ModelCheckpoint(folder, save_top_k=-1), *callbacks],
        **options,
    )
    trainer.fit(model, DATA)
    return model


def test_the_first_checkpoint_of_a_split_model_says_how_to_load_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = fit(ExpansionCallback(fpe.Paper(alpha=2), epoch=1), tmp_path)
    assert caplog.text.count(TOLD) == 1
    path = sorted(tmp_path.glob("*.ckpt"))[-1]
    with fpe.expanded_checkpoints():
        loaded = Lit.load_from_checkpoint(path)
    assert torch.equal(loaded(X), model(X))


def test_nothing_is_said_of_a_run_without_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Never:
        def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
            return False

    caplog.set_level(logging.INFO)
    fit(ExpansionCallback(trigger=Never()), tmp_path)
    assert "load_from_checkpoint" not in caplog.text


def built(path: Path) -> nn.Module:
    """The narrow module, widened as the file says, by torch alone."""
    scope: dict[str, Any] = {"torch": torch, "model": Lit(), "FILE": path}
    exec(torch.load(path, weights_only=True)["how_to_build"].partition("\n\n")[2], scope)
    return scope["model"]


def test_the_result_is_written_as_ordinary_layers(tmp_path: Path) -> None:
    file = tmp_path / "results" / "plain.pt"
    model = fit(ExpansionCallback(fpe.Blocks(alpha=2, groups=4), epoch=1, plain_file=file), tmp_path)
    found = built(file)
    assert type(found.net[0]) is nn.Linear
    assert found.net[0].out_features == 32
    assert torch.allclose(found(X), model(X), atol=1e-6)
    assert torch.load(file, weights_only=True)["attributes"] == {
        "net.0": {"out_features": 32},
        "net.2": {"in_features": 32},
    }


def test_averages_are_written_where_they_are_the_result(tmp_path: Path) -> None:
    average = WeightAveraging(avg_fn=get_ema_avg_fn(0.5), use_buffers=False)
    callback = ExpansionCallback(fpe.Paper(alpha=2), epoch=1, plain_file=tmp_path / "plain.pt")
    model = fit(callback, tmp_path, average)
    assert torch.allclose(built(tmp_path / "plain.pt")(X), model(X), atol=1e-6)


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    callback = ExpansionCallback(fpe.Paper(alpha=2), step=0, plain_file=tmp_path / "plain.pt")
    fit(callback, tmp_path, fast_dev_run=2)
    assert not (tmp_path / "plain.pt").exists()


def test_bad_names_are_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="`plain_file` takes a path, found 3"):
        ExpansionCallback(epoch=1, plain_file=3)
    with pytest.raises(MisconfigurationException, match="is a directory; name a file in it"):
        fit(ExpansionCallback(epoch=1, plain_file=tmp_path), tmp_path)


def test_shards_are_no_plain_file(tmp_path: Path) -> None:
    callback = ExpansionCallback(alpha=2, epoch=1, plain_file=tmp_path / "plain.pt")
    trainer: Any = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(
        MisconfigurationException, match=r"keeps in shards: leave it out, .* `fpe_lightning.save_plain`"
    ):
        callback.result.check(trainer)
    callback.result.check(SimpleNamespace(strategy=None))  # type: ignore[arg-type]
