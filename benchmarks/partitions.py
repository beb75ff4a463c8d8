"""What the fast ways to split cost in accuracy, against the paper's rule, on the embedded default data.

python -m benchmarks.partitions                        five seeds, widths 8, 16 and 32, alpha 2 and 4
python -m benchmarks.partitions --seeds 1 --epochs 5   a quick look
python -m benchmarks.partitions --widths 1024 --arms shared:16,columns shared:16,blocks   what the default does there

Every arm of a seed starts from the same dense network, trained for the same two epochs, and ends after as many epochs
on the same batches; the number of non-zeros is the same throughout. A cell holds the difference of accuracy to the
paper's rule (random partition, one magnitude order over all weights) in percentage points, with its standard error over
seeds, after the last epoch. One in bold is more than noise: its 95 % interval (Student's t, paired by seed) leaves out
zero. Choices between arms are made on the validation tables; the test tables report them.

All networks of a seed, an alpha and a width train as one stack, which takes a fifth of the time of one by one.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.optim import Adam, Optimizer

import fpe_lightning as fpe
from fpe_lightning.data import EmbeddingDataModule
from fpe_lightning.networks import MLP
from studies.batches import Batches
from studies.stacked import train_together
from studies.statistics import estimate, paired
from studies.tables import Table, as_markdown

Split = tuple[Tensor, Tensor]
Arm = tuple[str, str]
DENSE, PAPER = ("dense", ""), ("random", "total")
SINGLE = (
    ("random", "incoming"),
    ("shared", "total"),
    (Shared(groups=4), "total"),
    (Contiguous(groups=4), "total"),
    ("semi_structured", "total"),
)
"""Other partitions, where single weights make room as in the paper."""
WHOLE = (
    ("shared", "columns"),
    (Shared(groups=4), "columns"),
    (Shared(groups=8), "columns"),
    (Contiguous(groups=4), "columns"),
    (Shared(groups=4), "blocks"),
    (Contiguous(groups=4), "blocks"),
)
"""Partitions in blocks where whole columns or blocks make room: what ``layout="grouped"`` stores without masks."""
SPLIT_EPOCH, BATCH, RATE = 2, 256, 1e-2
"""The best rate of four on validation data, as in ``configs/clip_probe.yaml``."""


Key = tuple[int, int, Arm]
"""Width of the dense parent, alpha, arm; the dense network has alpha 1."""


@dataclass
class Results:
    """What came of all runs.

    Attributes:
        accuracies: Per cent by seed, by part of the data and key.
        refusals: What ``expand`` said to an arm that cannot be, by key.
    """

    accuracies: dict[str, dict[Key, dict[int, float]]] = field(default_factory=lambda: {"val": {}, "test": {}})
    refusals: dict[Key, str] = field(default_factory=dict)


def main() -> None:
    """Print a table for each alpha, of validation and of test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--alphas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--arms", type=_arm, nargs="+", default=SINGLE + WHOLE, metavar="PARTITION,BUDGET")
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--encoder", default="glyph-clip")
    options = parser.parse_args()
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    data = load(options.dataset, options.encoder)
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for width in options.widths:
            for seed in progress.track(range(options.seeds), description=f"width {width}"):
                run(results, data, width, options.alphas, options.arms, options.epochs, seed)
    rows = ", ".join(f"{len(labels)} rows of {part}" for part, (_, labels) in data.items())
    print(f"{options.dataset}, {options.encoder}: {rows}; {options.epochs} epochs, {options.seeds} seeds\n")
    parts = [(part, alpha) for part in results.accuracies for alpha in options.alphas]
    tables = [table(results, part, options.widths, alpha, options.arms) for part, alpha in parts]
    print(as_markdown(tables))


def load(dataset: str, encoder: str) -> dict[str, Split]:
    """All embeddings, by part of the data."""
    data = EmbeddingDataModule(dataset=dataset, encoder=encoder, batch_size=4096)
    data.prepare_data()
    data.setup()
    parts = {}
    for name in ("train", "val", "test"):
        inputs, labels = zip(*getattr(data, f"{name}_dataloader")(), strict=True)
        parts[name] = (torch.cat(inputs), torch.cat(labels))
    return parts


def _arm(text: str) -> Arm:
    partition, _, budget = text.partition(",")
    return partition, budget


def run(
    results: Results,
    data: dict[str, Split],
    width: int,
    alphas: Sequence[int],
    arms: Sequence[Arm],
    epochs: int,
    seed: int,
) -> None:
    """Train every arm of one seed, and add what came of it to the results."""
    torch.manual_seed(seed)
    parent = MLP(data["train"][0].shape[1], width, int(data["train"][1].max()) + 1)
    optimizer = Adam(parent.parameters(), lr=RATE, fused=True)
    train([parent], [optimizer], data["train"], range(SPLIT_EPOCH), seed)
    sites = fpe.find_sites(parent, data["train"][0][:2])
    for alpha in (1, *alphas):
        found: dict[Arm, tuple[MLP, Optimizer]] = {}
        for arm in (DENSE,) if alpha == 1 else (PAPER, *arms):
            network, own = copy.deepcopy((parent, optimizer))
            if alpha > 1:
                try:
                    partition, budget = arm
                    fpe.expand(
                        network,
                        fpe.Expansion(alpha=alpha, partition=partition, prune=budget, seed=seed),
                        sites=sites,
                        optimizer=own,
                    )
                except ValueError as error:  # a rule that cannot be at this width and alpha, shown in the table
                    results.refusals[width, alpha, arm] = str(error)
                    continue
            found[arm] = network, own
        networks, optimizers = zip(*found.values(), strict=True)
        train(networks, optimizers, data["train"], range(SPLIT_EPOCH, epochs), seed)
        for arm, (network, _) in found.items():
            for part, accuracies in results.accuracies.items():
                accuracies.setdefault((width, alpha, arm), {})[seed] = accuracy(network, data[part])


def train(networks: Sequence[MLP], optimizers: Sequence[Optimizer], split: Split, epochs: range, seed: int) -> None:
    """Train networks of one shape on the same batches."""
    inputs, labels = split[0].unsqueeze(0), split[1].unsqueeze(0)
    batches = Batches(BATCH, [seed], first_epoch=epochs.start)
    train_together(networks, optimizers, inputs, labels, F.cross_entropy, len(epochs), batches=batches)


@torch.inference_mode()
def accuracy(network: MLP, split: Split) -> float:
    """Rows whose class is the likeliest, in per cent."""
    return 100 * float((network(split[0]).argmax(1) == split[1]).float().mean())


def table(results: Results, part: str, widths: Sequence[int], alpha: int, arms: Sequence[Arm]) -> Table:
    """The differences to the paper's rule on one part of the data."""
    found = results.accuracies[part]
    means = [
        (what, *(f"{estimate(found[width, one, arm]).mean:.1f}" for width in widths))
        for what, one, arm in (("dense, accuracy", 1, DENSE), (f"{', '.join(PAPER)} (paper), accuracy", alpha, PAPER))
    ]
    lines = [(", ".join(arm), *(_cell(results, found, (width, alpha, arm)) for width in widths)) for arm in arms]
    title = f"alpha {alpha}, {NAMES[part]} accuracy in %, differences to the paper's rule"
    notes = [
        f"Refused: {', '.join(arm)} at width {width}: {why}"
        for (width, factor, arm), why in results.refusals.items()
        if factor == alpha
    ]
    return Table(title, ("partition, budget", *(f"width {width}" for width in widths)), [*means, *lines], notes)


NAMES = {"val": "validation", "test": "test"}


def _cell(results: Results, found: dict[Key, dict[int, float]], key: Key) -> str:
    if key in results.refusals:
        return "refused"
    width, alpha, _ = key
    difference = paired(found[key], found[width, alpha, PAPER])
    text = f"{difference.mean:+.1f} ± {difference.error:.1f}"
    return f"**{text}**" if difference.low > 0 or difference.high < 0 else text


if __name__ == "__main__":
    main()
