"""Projects whose users make the Trainer: they add the callback to it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import Tensor, nn

from benchmarks.field.project import Project

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


def checkpoint(method: Any, path: Path) -> dict[str, Any]:
    """The arguments that load a checkpoint of objects, which Lightning since 2.6 does not trust by itself."""
    trusted = {"weights_only": False} if "weights_only" in inspect.signature(method).parameters else {}
    return {"ckpt_path": str(path), **trusted}


class InTrainer(Project):
    """A LightningModule, the data, and a Trainer of either package of Lightning."""

    lightning = "lightning.pytorch"

    def data(self) -> Any:
        """Batches in a fixed order, as ``fit`` takes them."""
        raise NotImplementedError

    def trainer(self, folder: Path, epochs: int, callbacks: Sequence[Any]) -> Any:
        """The Trainer of a run."""
        package = importlib.import_module(self.lightning)
        return package.Trainer(max_epochs=epochs, callbacks=list(callbacks), default_root_dir=str(folder), **QUIET)

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Fit and save a checkpoint."""
        torch.manual_seed(0)
        module, trainer = self.build(), self.trainer(folder, epochs, callbacks)
        trainer.fit(module, self.data(), **({} if resume is None else checkpoint(trainer.fit, resume / "last.ckpt")))
        trainer.save_checkpoint(str(folder / "last.ckpt"))
        return module

    def load(self, folder: Path) -> nn.Module:
        """``load_from_checkpoint`` of the module's class."""
        kind: Any = type(self.build())
        return kind.load_from_checkpoint(str(folder / "last.ckpt"))


class DenseNet(nn.Module):
    """Written after lightning-hydra-template's ``SimpleDenseNet``; not its file."""

    def __init__(self, inputs: int = 64, hidden: tuple[int, ...] = (32, 32), outputs: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
            inputs = width
        self.model = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Flatten and compute logits."""
        return self.model(x.flatten(1))


class DigitModule(pl.LightningModule):
    """Written after lightning-hydra-template's ``MNISTLitModule``; not its file.

    As there, the network is a hyperparameter, metrics are submodules, and a scheduler watches the validation loss.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.val_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)
        self.train_loss, self.val_loss = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
        self.val_acc_best = torchmetrics.MaxMetric()

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        return self.net(x)

    def on_train_start(self) -> None:
        """Forget the sanity check."""
        self.val_loss.reset()
        self.val_acc.reset()

    def _model_step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self(x)
        return self.criterion(logits, y), logits.argmax(1), y

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Log loss and accuracy."""
        loss, predicted, y = self._model_step(batch)
        self.train_loss(loss)
        self.train_acc(predicted, y)
        self.log("train/loss", self.train_loss, on_epoch=True)
        self.log("train/acc", self.train_acc, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy."""
        loss, predicted, y = self._model_step(batch)
        self.val_loss(loss)
        self.val_acc(predicted, y)
        self.log("val/loss", self.val_loss)

    def on_validation_epoch_end(self) -> None:
        """Keep the best accuracy."""
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing is logged."""
        self._model_step(batch)

    def configure_optimizers(self) -> Any:
        """Adam, and a scheduler that watches the validation loss."""
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        watched = {"scheduler": scheduler, "monitor": "val/loss", "interval": "epoch", "frequency": 1}
        return {"optimizer": optimizer, "lr_scheduler": watched}


class Digits(pl.LightningDataModule):
    """Random digits for both parts."""

    def _loader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(64, 1, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)

    train_dataloader = val_dataloader = test_dataloader = _loader


class HydraTemplate(InTrainer):
    """lightning-hydra-template: a module like its own test model, and what its ``eval.py`` does."""

    name = "lightning-hydra-template"

    def build(self) -> nn.Module:
        """The module around the network."""
        return DigitModule(DenseNet())

    def data(self) -> Any:
        """A DataModule."""
        return Digits()

    def load(self, folder: Path) -> nn.Module:
        """As ``eval.py``: ``Trainer.test`` with the checkpoint, and no callback of ours."""
        module: Any = self.build()
        trainer: Any = self.trainer(folder, 1, ())
        trainer.test(module, Digits(), verbose=False, **checkpoint(trainer.test, folder / "last.ckpt"))
        return module

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits."""
        with torch.no_grad():
            return model.eval()(torch.linspace(-1, 1, 128).view(2, 1, 8, 8))


def lit_module(package: str, network: nn.Module, loss: Any) -> Any:
    """A LightningModule of either package around a network."""
    base: Any = importlib.import_module(package).LightningModule

    class Lit(base):
        """Trains its network with AdamW."""

        def __init__(self) -> None:
            super().__init__()
            self.net = network

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss(self.net(batch[0]), batch[1])

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return Lit()


class OtherName(InTrainer):
    """A module and a Trainer of ``pytorch_lightning``; ``Trainer.predict`` loads without our callback."""

    name = "pytorch_lightning"
    packages = ("pytorch-lightning",)
    lightning = "pytorch_lightning"

    def build(self) -> nn.Module:
        """Two layers."""
        network = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        return lit_module(self.lightning, network, nn.functional.mse_loss)

    def data(self) -> Any:
        """A loader."""
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(64, 16, generator=generator), torch.randn(64, 1, generator=generator)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)

    def load(self, folder: Path) -> nn.Module:
        """``Trainer.predict(ckpt_path=...)``."""
        module = self.build()
        self.trainer(folder, 1, ()).predict(module, self.data(), ckpt_path=str(folder / "last.ckpt"))
        return module

    def outputs(self, model: nn.Module) -> Tensor:
        """Predictions."""
        network: Any = model.eval()
        with torch.no_grad():
            return network.net(torch.linspace(-1, 1, 32).view(2, 16))


PROJECTS: tuple[type[Project], ...] = (HydraTemplate, OtherName)
