"""Measure the overhead of Lightning on cached embeddings: a Trainer against a plain loop over the same batches.

Run ``python -m benchmarks.probe_throughput``. Both train one model each in the same process and take turns: one plain
epoch, one Lightning epoch, and so on, each with training, validation, loss and accuracy. Lightning's time runs from the
end of one plain epoch to the start of the next, so it includes logs, checkpoints and the progress bar. Lightning's own
loop costs some tenths of a millisecond per batch and some milliseconds per epoch, for any size of the batch. So the
ratio of the two times falls with the size of the batch.
"""

from __future__ import annotations

import argparse
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
from torch import Tensor

import fpe_lightning as fpe
from benchmarks._timing import CLOCKS
from benchmarks.logging_ways import (
    CLASSES,
    DIM,
    Bare,
    Batch,
    LogEveryStep,
    LogMetricObjects,
    LogOncePerEpoch,
    Sums,
    adamw,
    loss_and_correct,
    make_network,
    means,
)
from fpe_lightning.callbacks import ExpansionCallback, InterferenceMonitor, RunSummary, TensorBoardReport
from fpe_lightning.data.loader import BatchLoader
from fpe_lightning.modules import Classifier

TRAIN, VAL = 12_032, 3_008
BLOCK = 5
"""Number of epochs whose times are added before a comparison: work of every fifth epoch counts too."""
Comforts = Literal["none", "ours", "all"]
"""``"ours"``: TensorBoard and this project's callbacks; ``"all"``: also Lightning's checkpoints of the best and the
last epoch and its rich progress bar, as in ``configs/clip_probe.yaml``; ``"none"``: none of them."""


def synthetic(rows: int) -> Batch:
    """Noisy class means in half precision, of the size of the default data set's embeddings."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % CLASSES
    centres = torch.randn(CLASSES, DIM, generator=generator)
    return (centres[labels] + 2 * torch.randn(rows, DIM, generator=generator)).half(), labels


def make_loaders(batch_size: int) -> tuple[BatchLoader, BatchLoader]:
    """Return training and validation batches in float32."""
    train = BatchLoader(*synthetic(TRAIN), batch_size, shuffle=True, transform=Tensor.float)
    return train, BatchLoader(*synthetic(VAL), 1024, transform=Tensor.float)


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


class TurnByTurn(L.Callback):
    """Runs a plain epoch before each Lightning epoch and measures both; it must be the first callback."""

    def __init__(self, plain: PlainLoop, clock: Callable[[], float]) -> None:
        self.plain, self.clock, self.began = plain, clock, 0.0
        self.plain_seconds: list[float] = []
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop Lightning's clock, run and measure a plain epoch, start Lightning's clock."""
        now = self.clock()
        if self.began:
            self.seconds.append(now - self.began)
        self.plain.epoch(trainer.current_epoch)
        self.began = self.clock()
        self.plain_seconds.append(self.began - now)


def our_callbacks(epochs: int) -> list[L.Callback]:
    """Return the project's callbacks, with a split in the last epoch, which does not count."""
    return [
        ExpansionCallback(fpe.Paper(alpha=4), epoch=epochs - 1),
        InterferenceMonitor(every_n_epochs=BLOCK, sites="network.layers.0"),
        RunSummary(),
        TensorBoardReport(),
    ]


def around(comforts: Comforts, folder: str, epochs: int) -> dict[str, Any]:
    """Return the Trainer's arguments for a degree of comfort: loggers, callbacks and switches."""
    extra: list[L.Callback] = [] if comforts == "none" else our_callbacks(epochs)
    if comforts == "all":
        extra += [
            ModelCheckpoint(folder, monitor="val/loss", save_last=True),
            RichProgressBar(refresh_rate=20),
        ]
    return {
        "callbacks": extra,
        "logger": TensorBoardLogger(folder, default_hp_metric=False) if comforts != "none" else False,
        "log_every_n_steps": 10,
        "enable_checkpointing": comforts == "all",
        "enable_progress_bar": comforts == "all",
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }


def measure(
    make_module: Callable[[int], L.LightningModule],
    width: int,
    batch_size: int,
    epochs: int,
    comforts: Comforts,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Train one module turn by turn with a plain loop.

    Args:
        make_module: Called with the width.
        width: Hidden neurons.
        batch_size: Training rows per batch.
        epochs: Number of Lightning epochs; the first and the last do not count.
        comforts: ``"none"``, ``"ours"`` or ``"all"``.
        clock: Returns seconds; ``time.process_time`` is steadier on a busy machine, but excludes time for the disk.

    Returns:
        Milliseconds of a plain epoch, milliseconds of a Lightning epoch, and the ratio; medians over blocks of epochs.
    """
    turns = TurnByTurn(PlainLoop(width, batch_size), clock)
    with tempfile.TemporaryDirectory() as folder:
        settings = around(comforts, folder, epochs)
        settings["callbacks"].insert(0, turns)
        trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, **settings)
        trainer.fit(make_module(width), *make_loaders(batch_size))
    # Compare sums over whole blocks, without the first and the last epoch.
    blocks = [
        (sum(turns.plain_seconds[first : first + BLOCK]), sum(turns.seconds[first : first + BLOCK]))
        for first in range(1, epochs - BLOCK, BLOCK)
    ]
    plain, ours = (1e3 / BLOCK * statistics.median(times) for times in zip(*blocks, strict=True))
    return plain, ours, statistics.median(b / a for a, b in blocks)


def classifier(width: int) -> Classifier:
    """Return the module that the shipped configs train."""
    return Classifier(make_network(width), optimizer=adamw)


def main() -> None:
    """Measure every way of logging and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024], help="training rows of a batch")
    parser.add_argument("--width", type=int, default=8, help="hidden neurons")
    parser.add_argument("--epochs", type=int, default=42, help="epochs for each row of the table, two not counted")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time that passed, or CPU time used")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    ways: dict[str, tuple[Callable[[int], L.LightningModule], Comforts]] = {
        "nothing logged, no callbacks": (Bare, "none"),
        "Classifier, TensorBoard, our callbacks": (classifier, "ours"),
        "the same, checkpoints, progress bar": (classifier, "all"),
        "by hand: self.log once an epoch": (LogOncePerEpoch, "ours"),
        "by hand: self.log every step": (LogEveryStep, "ours"),
        "by hand: torchmetrics every step": (LogMetricObjects, "ours"),
    }
    table = Table(
        title=f"Width {arguments.width} on {TRAIN:,} x {DIM} embeddings: ms an epoch ({arguments.clock} clock)",
        caption="By hand: other modules in the place of Classifier, with TensorBoard and our callbacks.",
    )
    for column in ("batch", "Lightning with", "plain", "Lightning", "ratio"):
        table.add_column(column, justify="left" if column == "Lightning with" else "right", no_wrap=True)
    clock = CLOCKS[arguments.clock]
    for batch_size in arguments.batch_sizes:
        for name, (make_module, comforts) in ways.items():
            plain, ours, ratio = measure(make_module, arguments.width, batch_size, arguments.epochs, comforts, clock)
            table.add_row(str(batch_size), name, f"{plain:.1f}", f"{ours:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
