"""One probe with four ways to log its metrics, and no other difference."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fpe_lightning.networks import MLP

DIM, CLASSES = 512, 94
Batch = tuple[Tensor, Tensor]
Sums = list[tuple[Tensor, Tensor, int]]


def make_network(width: int) -> nn.Module:
    """Return the probe, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP(DIM, width, CLASSES)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer of both loops."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def loss_and_correct(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch and the number of correct predictions."""
    logits = network(batch[0])
    return F.cross_entropy(logits, batch[1]), (logits.argmax(dim=1) == batch[1]).sum()


def means(sums: Sums) -> tuple[Tensor, Tensor]:
    """Mean loss and accuracy over batches of any size."""
    losses, correct, sizes = zip(*sums, strict=True)
    rows = torch.tensor(sizes)
    return (torch.stack(losses) * rows).sum() / rows.sum(), torch.stack(correct).sum() / rows.sum()


class Bare(L.LightningModule):
    """Logs nothing, so its time is the cost of Lightning's loop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = make_network(width)

    def step(self, batch: Batch, split: Literal["train", "val"]) -> Tensor:
        """Return the loss of a batch."""
        return loss_and_correct(self.network, batch)[0]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Train on a batch."""
        return self.step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Validate on a batch."""
        self.step(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return adamw(self.parameters())


class LogOncePerEpoch(Bare):
    """Keeps tensors during the epoch and calls ``self.log`` at its end."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.sums: dict[str, Sums] = {"train": [], "val": []}

    def step(self, batch: Batch, split: Literal["train", "val"]) -> Tensor:
        """Return the loss of a batch, and keep it."""
        loss, correct = loss_and_correct(self.network, batch)
        self.sums[split].append((loss.detach(), correct, len(batch[1])))
        return loss

    def log_means(self, split: Literal["train", "val"]) -> None:
        """Log the means of the epoch, and reset."""
        loss, accuracy = means(self.sums[split])
        self.sums[split].clear()
        self.log_dict({f"{split}/loss": loss, f"{split}/accuracy": accuracy})

    def on_train_epoch_end(self) -> None:
        """Log the training epoch."""
        self.log_means("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation."""
        self.log_means("val")


class LogEveryStep(Bare):
    """Calls ``self.log(..., on_step=False, on_epoch=True)`` for every batch."""

    def step(self, batch: Batch, split: Literal["train", "val"]) -> Tensor:
        """Return the loss of a batch, and log it."""
        loss, correct = loss_and_correct(self.network, batch)
        values = {f"{split}/loss": loss, f"{split}/accuracy": correct / len(batch[1])}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss


class LogMetricObjects(Bare):
    """Updates torchmetrics objects for every batch and passes them to ``self.log``."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        names = ("train", "val")
        self.accuracy = nn.ModuleDict({f"{name}_": MulticlassAccuracy(CLASSES, average="micro") for name in names})
        self.loss = nn.ModuleDict({f"{name}_": MeanMetric() for name in names})

    def step(self, batch: Batch, split: Literal["train", "val"]) -> Tensor:
        """Return the loss of a batch, and update the metrics."""
        logits = self.network(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy[f"{split}_"].update(logits, batch[1])  # type: ignore[operator]
        self.loss[f"{split}_"].update(loss.detach(), len(batch[1]))  # type: ignore[operator]
        metrics = {f"{split}/loss": self.loss[f"{split}_"], f"{split}/accuracy": self.accuracy[f"{split}_"]}
        self.log_dict(metrics, on_step=False, on_epoch=True)  # type: ignore[arg-type]
        return loss
