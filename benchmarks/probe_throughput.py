"""What Lightning costs on cached embeddings: epochs under a Trainer against a plain loop over the same batches.

Run ``python -m benchmarks.probe_throughput``. Both train one model each in the same process, turn by turn: one plain
epoch, one Lightning epoch, and so on, each with training, validation, loss and accuracy. Lightning's time runs from the
end of the plain epoch to the beginning of the next one, so it includes checkpoints, logs and the progress bar.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fpe_lightning.data.loader import BatchLoader

TRAIN, VAL, DIM, CLASSES = 12_032, 3_008, 512, 94
Batch = tuple[Tensor, Tensor]
Sums = list[tuple[Tensor, Tensor, int]]


def synthetic(rows: int) -> Batch:
    """Noisy class means in half precision, of the size of the default data set's embeddings."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % CLASSES
    means = torch.randn(CLASSES, DIM, generator=generator)
    return (means[labels] + 2 * torch.randn(rows, DIM, generator=generator)).half(), labels


def make_loaders(batch_size: int) -> tuple[BatchLoader, BatchLoader]:
    """Return training and validation batches in float32."""
    train = BatchLoader(*synthetic(TRAIN), batch_size, shuffle=True, transform=Tensor.float)
    return train, BatchLoader(*synthetic(VAL), 1024, transform=Tensor.float)


def make_network(width: int) -> nn.Module:
    """Return the probe, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(DIM, width), nn.ReLU(), nn.Linear(width, CLASSES))


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


class PlainLoop:
    """The same epoch written out by hand."""

    def __init__(self, width: int, batch_size: int) -> None:
        self.network = make_network(width)
        self.optimizer = adamw(self.network.parameters())
        self.train, self.val = make_loaders(batch_size)

    def epoch(self, number: int) -> None:
        """Train and validate once."""
        self.train.set_epoch(number)
        sums: Sums = []
        for batch in self.train:
            loss, correct = loss_and_correct(self.network, batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            sums.append((loss.detach(), correct, len(batch[1])))
        means(sums)
        with torch.no_grad():
            means([(*loss_and_correct(self.network, batch), len(batch[1])) for batch in self.val])


class Bare(L.LightningModule):
    """Logs nothing: what remains is the cost of Lightning's loop itself."""

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
        """Look at a batch."""
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
        """Log what was kept, and forget it."""
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
    """Updates torchmetrics objects for every batch and hands them to ``self.log``."""

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


class TurnByTurn(L.Callback):
    """Runs a plain epoch before each Lightning epoch and measures both; has to be the first callback."""

    def __init__(self, plain: PlainLoop) -> None:
        self.plain, self.plain_seconds, self.seconds = plain, [], []  # type: ignore[var-annotated]
        self.began = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop Lightning's clock, run and measure a plain epoch, start Lightning's clock."""
        now = time.perf_counter()
        if self.began:
            self.seconds.append(now - self.began)
        self.plain.epoch(trainer.current_epoch)
        self.began = time.perf_counter()
        self.plain_seconds.append(self.began - now)


def our_callbacks(epochs: int) -> list[L.Callback]:
    """Return the project's callbacks as far as they are installed, with a split that is due in the last epoch only."""
    wanted = {"ExpansionCallback": {"alpha": 2, "epoch": epochs - 1}, "InterferenceMonitor": {}}
    module = importlib.import_module("fpe_lightning.callbacks")
    return [getattr(module, name)(**kwargs) for name, kwargs in wanted.items() if hasattr(module, name)]


def our_classifier(width: int) -> L.LightningModule:
    """Return the project's module for the same network."""
    classifier = importlib.import_module("fpe_lightning.modules.classifier").Classifier
    return classifier(make_network(width), optimizer=adamw)


def measure(
    make_module: Callable[[int], L.LightningModule], width: int, batch_size: int, epochs: int, everything: bool
) -> tuple[float, float, float]:
    """Train one module turn by turn with a plain loop.

    Args:
        make_module: Called with the width.
        width: Hidden neurons.
        batch_size: Training rows of a batch.
        epochs: Lightning epochs; the first and the last are not counted.
        everything: Whether TensorBoard, progress bar, checkpoints and this project's callbacks are on.

    Returns:
        Milliseconds of a plain epoch, milliseconds of a Lightning epoch, and the median ratio of neighbours.
    """
    clock = TurnByTurn(PlainLoop(width, batch_size))
    with tempfile.TemporaryDirectory() as folder:
        extra = (
            [RichProgressBar(), ModelCheckpoint(folder, save_last=True), *our_callbacks(epochs)] if everything else []
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[clock, *extra],
            logger=TensorBoardLogger(folder) if everything else False,
            enable_checkpointing=everything,
            enable_progress_bar=everything,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(make_module(width), *make_loaders(batch_size))
    plain, ours = clock.plain_seconds[1:-1], clock.seconds[1:]
    ratio = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
    return 1e3 * statistics.median(plain), 1e3 * statistics.median(ours), ratio


def main() -> None:
    """Measure every way of logging and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024], help="training rows of a batch")
    parser.add_argument("--width", type=int, default=8, help="hidden neurons")
    parser.add_argument("--epochs", type=int, default=40, help="epochs for each row of the table, two not counted")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    ways: dict[str, tuple[Callable[[int], L.LightningModule], bool]] = {
        "nothing logged, no bar, no checkpoint": (Bare, False),
        "nothing logged": (Bare, True),
        "self.log once an epoch": (LogOncePerEpoch, True),
        "self.log every step": (LogEveryStep, True),
        "torchmetrics every step": (LogMetricObjects, True),
    }
    if importlib.util.find_spec("fpe_lightning.modules.classifier"):
        ways["fpe_lightning.modules.Classifier"] = (our_classifier, True)
    names = ", ".join(type(callback).__name__ for callback in our_callbacks(arguments.epochs)) or "none yet"
    table = Table(title=f"Probe of width {arguments.width} on {TRAIN:,} x {DIM} embeddings; our callbacks: {names}")
    for column in ("batch", "Lightning with", "plain ms/epoch", "Lightning ms/epoch", "median ratio"):
        table.add_column(column, justify="left" if column == "Lightning with" else "right")
    for batch_size in arguments.batch_sizes:
        for name, (make_module, everything) in ways.items():
            plain, ours, ratio = measure(make_module, arguments.width, batch_size, arguments.epochs, everything)
            table.add_row(str(batch_size), name, f"{plain:.1f}", f"{ours:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
