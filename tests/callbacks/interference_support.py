"""A small model, and a logger that remembers, for the monitor's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fpe_lightning.callbacks.expansion import ExpansionCallback

BATCHES = 2


class Tiny(LightningModule):
    """Two hidden layers, or a convolution and a head."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            mlp = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        self.net = mlp if network is None else network

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor]) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(4 * BATCHES, 16, generator=generator)
        return DataLoader(TensorDataset(x, torch.arange(len(x)) % 2), batch_size=4)

    test_dataloader = train_dataloader


def conv_network() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (4, 2, 2)),
        nn.Conv2d(4, 3, 2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3),
        nn.Flatten(),
        nn.Linear(2, 2),
    )


def splits(*sites: str, epoch: int | list[int] = 1) -> ExpansionCallback:
    """An expansion callback that need not look for the model's inputs."""
    return ExpansionCallback(epoch=epoch, sites=list(sites) or None, example_inputs=torch.zeros(2, 16))


class Recorder(Logger):
    """A logger of some other service."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = "recorder"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def monitored(self) -> list[tuple[int, dict[str, float]]]:
        """The rows that the monitor wrote."""
        return [row for row in self.rows if any(key.startswith("interference/") for key in row[1])]


def fit(
    callbacks: list[Callback], model: Tiny | None = None, epochs: int = 3, ckpt_path: Path | None = None, **trainer: Any
) -> Tiny:
    model = Tiny() if model is None else model
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    one = {"accelerator": "cpu", "devices": 1}
    Trainer(max_epochs=epochs, callbacks=callbacks, **quiet, **one, **trainer).fit(model, ckpt_path=ckpt_path)
    return model
