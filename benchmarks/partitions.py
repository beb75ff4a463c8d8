"""What the fast ways to split cost in accuracy, against the paper's rule, on the embedded default data.

python -m benchmarks.partitions               five seeds, widths 8, 16 and 32, alpha 2 and 4
python -m benchmarks.partitions --seeds 1     one

Every arm of a seed starts from the same dense network, trained for the same two epochs, and ends after as many epochs
on the same batches; the number of non-zeros is the same throughout. Figures are test accuracies in per cent: the dense
network's, then differences to the paper's rule (random partition, one magnitude order over all weights) with their
standard error over the seeds.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Sequence
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.data import EmbeddingDataModule
from fpe_lightning.networks import MLP

Split = tuple[Tensor, Tensor]
PAPER = ("random", "total")
ARMS = (
    PAPER,
    ("random", "incoming"),
    ("shared", "total"),
    ("shared:4", "total"),
    ("shared", "columns"),
    ("shared:4", "columns"),
    ("shared:8", "columns"),
    ("contiguous", "columns"),
    ("contiguous:4", "columns"),
    ("shared:4", "blocks"),
    ("contiguous:4", "blocks"),
    ("semi_structured", "total"),
)
SPLIT_EPOCH = 2


def main() -> None:
    """Print one table for each alpha."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--alphas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--encoder", default="glyph-clip")
    options = parser.parse_args()
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    train, test = load(options.dataset, options.encoder)
    console = Console()
    console.print(f"{options.dataset}: {len(train[0])} rows to train on, {len(test[0])} to test, {options.seeds} seeds")
    tables: dict[tuple[int, int, str, str], list[float]] = {}
    for width in options.widths:
        for seed in track(range(options.seeds), f"width {width}"):
            for key, accuracy in run(train, test, width, options.alphas, options.epochs, seed).items():
                tables.setdefault((width, *key), []).append(accuracy)
    for alpha in options.alphas:
        console.print(_table(tables, options.widths, alpha, options.seeds))


def load(dataset: str, encoder: str) -> tuple[Split, Split]:
    """All embeddings of the training and of the test split."""
    data = EmbeddingDataModule(dataset=dataset, encoder=encoder, batch_size=4096)
    data.prepare_data()
    data.setup()
    both = []
    for loader in (data.train_dataloader(), data.test_dataloader()):
        inputs, labels = zip(*loader, strict=True)
        both.append((torch.cat(inputs), torch.cat(labels)))
    return both[0], both[1]


def run(
    train: Split, test: Split, width: int, alphas: Sequence[int], epochs: int, seed: int
) -> dict[tuple[int, str, str], float]:
    """The test accuracy of every arm, by alpha, partition and budget; alpha 1 is the dense network."""
    torch.manual_seed(seed)
    classes = int(train[1].max()) + 1
    dense = MLP(train[0].shape[1], width, classes)
    optimizer = torch.optim.Adam(dense.parameters(), lr=3e-3)
    shuffle = Generator().manual_seed(seed)
    fit(dense, optimizer, train, SPLIT_EPOCH, shuffle)
    found = {}
    for alpha, partition, budget in [(1, "", ""), *((alpha, *arm) for alpha in alphas for arm in ARMS)]:
        if partition == "semi_structured" and alpha != 2:
            continue
        network, own = copy.deepcopy((dense, optimizer))
        if alpha > 1:
            try:
                fpe.expand(
                    network,
                    alpha,
                    partition,
                    budget=budget,
                    seed=seed,
                    layout="masked",
                    optimizer=own,
                    example_inputs=train[0][:2],
                )
            except ValueError:  # the rule leaves too little of some neuron at this alpha
                continue
        fit(network, own, train, epochs - SPLIT_EPOCH, Generator().manual_seed(seed + 1))
        with torch.inference_mode():
            found[alpha, partition, budget] = float((network(test[0]).argmax(1) == test[1]).float().mean()) * 100
    return found


def fit(network: nn.Module, optimizer: torch.optim.Optimizer, train: Split, epochs: int, shuffle: Generator) -> None:
    """Train for some epochs in batches of 256."""
    for _ in range(epochs):
        for rows in torch.randperm(len(train[0]), generator=shuffle).split(256):
            optimizer.zero_grad()
            F.cross_entropy(network(train[0][rows]), train[1][rows]).backward()
            optimizer.step()


def _table(found: dict[tuple[int, int, str, str], list[float]], widths: Sequence[int], alpha: int, seeds: int) -> Table:
    table = Table(title=f"alpha {alpha}: test accuracy in per cent, difference to the paper's rule +- standard error")
    table.add_column("partition, budget")
    for width in widths:
        table.add_column(f"width {width}", justify="right")
    table.add_row("dense", *(f"{mean(found[width, 1, '', '']):.1f}" for width in widths))
    for arm in ARMS:
        cells = []
        for width in widths:
            ours, paper = (width, alpha, *arm), (width, alpha, *PAPER)
            values = found.get(ours, [])
            if arm == PAPER:
                cells.append(f"{mean(values):.1f}")
            elif len(values) < seeds:
                cells.append("too little left")
            else:
                cells.append(_difference(values, found[paper]))
        if any(cell != "too little left" for cell in cells):
            table.add_row(", ".join(arm), *cells)
    return table


def _difference(values: list[float], reference: list[float]) -> str:
    differences = [ours - theirs for ours, theirs in zip(values, reference, strict=True)]
    error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return f"{mean(differences):+.1f} +- {error:.1f}"


if __name__ == "__main__":
    main()
