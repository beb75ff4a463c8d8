"""What Lightning costs on cached embeddings: epochs under a Trainer against a plain loop over the same batches.

Run ``python -m benchmarks.probe_throughput``. Both train one model each in the same process, turn by turn: one plain
epoch, one Lightning epoch, and so on, each with training, validation, loss and accuracy. Lightning's time runs from the
end of the plain epoch to the beginning of the next one, so it includes checkpoints, logs and the progress bar.
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
from fpe_lightning import callbacks
from fpe_lightning.data.loader import BatchLoader
from fpe_lightning.modules import Classifier

TRAIN, VAL = 12_032, 3_008
Comforts = Literal["none", "lean", "all"]
"""``"all"``: TensorBoard, rich progress bar, a checkpoint each epoch and this project's callbacks; ``"lean"``: the same
without the bar and with a checkpoint each fifth epoch; ``"none"``: none of them."""


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
    """Runs a plain epoch before each Lightning epoch and measures both; has to be the first callback."""

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
    """Return the project's callbacks as far as they are installed, with a split that is due in the last epoch only."""
    wanted: dict[str, dict[str, Any]] = {
        "ExpansionCallback": {"alpha": 2, "epoch": epochs - 1},
        "InterferenceMonitor": {},
    }
    return [getattr(callbacks, name)(**kwargs) for name, kwargs in wanted.items() if hasattr(callbacks, name)]


def around(comforts: Comforts, folder: str, epochs: int) -> dict[str, Any]:
    """Return what a Trainer is given for some degree of comfort: loggers, callbacks and switches."""
    extra: list[L.Callback] = []
    if comforts != "none":
        # a checkpoint of a small probe takes a tenth of its epoch, so a lean run writes one now and then
        extra = [ModelCheckpoint(folder, every_n_epochs=5 if comforts == "lean" else 1), *our_callbacks(epochs)]
    return {
        "callbacks": [RichProgressBar(), *extra] if comforts == "all" else extra,
        "logger": TensorBoardLogger(folder) if comforts != "none" else False,
        "enable_checkpointing": comforts != "none",
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
        batch_size: Training rows of a batch.
        epochs: Lightning epochs; the first and the last are not counted.
        comforts: What is on besides the loop; see ``Comforts``.
        clock: Seconds; ``time.process_time`` is steadier on a busy machine, but does not see what waits for the disk.

    Returns:
        Milliseconds of a plain epoch, milliseconds of a Lightning epoch, and the median ratio of neighbours.
    """
    turns = TurnByTurn(PlainLoop(width, batch_size), clock)
    with tempfile.TemporaryDirectory() as folder:
        settings = around(comforts, folder, epochs)
        settings["callbacks"].insert(0, turns)
        trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, **settings)
        trainer.fit(make_module(width), *make_loaders(batch_size))
    plain, ours = turns.plain_seconds[1:-1], turns.seconds[1:]
    ratio = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
    return 1e3 * statistics.median(plain), 1e3 * statistics.median(ours), ratio


def main() -> None:
    """Measure every way of logging and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024], help="training rows of a batch")
    parser.add_argument("--width", type=int, default=8, help="hidden neurons")
    parser.add_argument("--epochs", type=int, default=40, help="epochs for each row of the table, two not counted")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="time that passed, or CPU time used")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    ways: dict[str, tuple[Callable[[int], L.LightningModule], Comforts]] = {
        "nothing logged": (Bare, "none"),
        "self.log once an epoch, lean": (LogOncePerEpoch, "lean"),
        "self.log once an epoch": (LogOncePerEpoch, "all"),
        "self.log every step": (LogEveryStep, "all"),
        "torchmetrics every step": (LogMetricObjects, "all"),
        "fpe_lightning.modules.Classifier": (lambda width: Classifier(make_network(width), optimizer=adamw), "all"),
    }
    names = ", ".join(type(callback).__name__ for callback in our_callbacks(arguments.epochs)) or "none yet"
    table = Table(
        title=f"Width {arguments.width} on {TRAIN:,} x {DIM} embeddings: ms an epoch ({arguments.clock} clock)",
        caption=f"All but the first with TensorBoard, checkpoints, bar, {names}; lean: no bar, fewer checkpoints.",
    )
    for column in ("batch", "Lightning with", "plain", "Lightning", "ratio"):
        table.add_column(column, justify="left" if column == "Lightning with" else "right", no_wrap=True)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    for batch_size in arguments.batch_sizes:
        for name, (make_module, comforts) in ways.items():
            plain, ours, ratio = measure(make_module, arguments.width, batch_size, arguments.epochs, comforts, clock)
            table.add_row(str(batch_size), name, f"{plain:.1f}", f"{ours:.1f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
