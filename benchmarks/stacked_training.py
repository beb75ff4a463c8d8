"""Time networks that train together as a stack against one by one: the Boolean task, with a split in the middle.

Run ``python -m benchmarks.stacked_training``. It compares the stack with a plain torch loop, and with a Lightning
Trainer with the project's module and callback and without comforts. Every turn trains the same parents and children in
all three ways, one after the other. The table shows medians over turns, and medians of each turn's ratios.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks._timing import CLOCKS
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.data.boolean import dnf_task
from fpe_lightning.data.loader import BatchLoader
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP
from studies.stacked import train_together

LR = 3e-3
bce = nn.functional.binary_cross_entropy_with_logits
Data = tuple[Tensor, Tensor]


def parents(count: int, hidden: int) -> list[MLP]:
    """Return the dense networks, the same for every way."""
    torch.manual_seed(0)
    return [MLP(24, hidden, 1) for _ in range(count)]


def stacked(data: Data, networks: int, hidden: int, epochs: int) -> None:
    """Train parents together, split each, and train the children together."""
    models = parents(networks, hidden)
    optimizers = [torch.optim.Adam(model.parameters(), lr=LR, fused=True) for model in models]
    train_together(models, optimizers, *data, bce, epochs // 2)
    sites = fpe.find_sites(models[0], data[0][0, :2])
    for seed, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        fpe.expand(model, fpe.Paper(seed=seed), optimizer=optimizer, sites=sites)
    train_together(models, optimizers, *data, bce, epochs - epochs // 2)


def plain(data: Data, networks: int, hidden: int, epochs: int) -> None:
    """Train, split and train further one network after the other in a plain loop, with torch's fastest Adam."""
    inputs, targets = data[0][0], data[1][0, 0]
    sites = fpe.find_sites(MLP(24, hidden, 1), inputs[:2])
    for seed, model in enumerate(parents(networks, hidden)):
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
        for epoch in range(epochs):
            if epoch == epochs // 2:
                fpe.expand(model, fpe.Paper(seed=seed), optimizer=optimizer, sites=sites)
            optimizer.zero_grad()
            bce(model(inputs).squeeze(1), targets).backward()
            optimizer.step()


def lightning(data: Data, networks: int, hidden: int, epochs: int) -> None:
    """Do the same with a Trainer and an expansion callback for each network."""
    loader = BatchLoader(data[0][0], data[1][0, 0], batch_size=len(data[0][0]))
    for seed, model in enumerate(parents(networks, hidden)):
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[ExpansionCallback(fpe.Paper(alpha=2, seed=seed), epoch=epochs // 2)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(model, task="binary", optimizer=partial(torch.optim.Adam, lr=LR)), loader)


def seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """Return the time of one call."""
    began = clock()
    run()
    return clock() - began


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", type=int, default=16, help="networks of the stack; one by one, a few stand for all"
    )
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[256, 2048], help="training samples, all in one batch"
    )
    parser.add_argument("--hidden", type=int, default=8, help="neurons before the split")
    parser.add_argument("--epochs", type=int, default=2000, help="epochs, as in the study; the split is in the middle")
    parser.add_argument("--turns", type=int, default=3, help="turns, the first of which is not counted")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time that passed, or CPU time used")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning").setLevel(logging.ERROR)

    clock = CLOCKS[arguments.clock]
    ways = {"stacked": (stacked, arguments.networks), "plain loop": (plain, 2), "Lightning": (lightning, 1)}
    table = Table(
        title=f"Microseconds an epoch and network, {arguments.networks} networks 24-{arguments.hidden}-1 "
        f"({arguments.clock} clock, {torch.get_num_threads()} threads)",
        caption="Median over turns of the same work done each way; times faster: median ratio within a turn.",
    )
    for column in ("samples", *ways, "times faster than plain", "than Lightning"):
        table.add_column(column, justify="right")
    for samples in arguments.samples:
        inputs, truth = dnf_task(train=samples).train
        data = inputs.unsqueeze(0), truth.float().view(1, 1, -1)
        turns: list[list[float]] = []
        for _ in range(arguments.turns):
            turns.append([])
            for run, count in ways.values():
                took = seconds(partial(run, data, count, arguments.hidden, arguments.epochs), clock)
                turns[-1].append(1e6 * took / count / arguments.epochs)
        # The first turn warms up; ratios are taken within a turn, as the machine's speed varies between turns.
        counted = turns[1:]
        cells = [statistics.median(turn[way] for turn in counted) for way in range(len(ways))]
        ratios = [statistics.median(turn[way] / turn[0] for turn in counted) for way in (1, 2)]
        table.add_row(str(samples), *(f"{cell:.0f}" for cell in cells), *(f"{ratio:.1f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
