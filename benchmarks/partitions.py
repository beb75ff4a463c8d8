"""Compare the accuracy of partitions and pruning rules with the paper's rule, on the embedded default data.

python -m benchmarks.partitions                        five seeds, widths 8, 16 and 32, alpha 2 and 4
python -m benchmarks.partitions --seeds 1 --epochs 5   a quick look
python -m benchmarks.partitions --widths 1024 --arms "16 groups*"   large blocks, as by default

Every arm of a seed starts from the same dense network after two epochs, and trains for the same epochs on the same
batches; the number of non-zeros is constant. A cell is the difference of accuracy to the paper's rule (random
partition, one magnitude order over all weights) after the last epoch, in percentage points, with its standard error
over seeds. Bold marks a 95 % interval (Student's t, paired by seed) without zero. Choose arms on the validation tables;
the test tables report the choice.

All networks of a seed, an alpha and a width train as one stack, which takes a fifth of the time of single runs.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.optim import Adam, Optimizer

import fpe_lightning as fpe
from fpe_lightning.data import EmbeddingDataModule
from fpe_lightning.networks import MLP
from fpe_lightning.partitions import Contiguous, Partition, SemiStructured, Shared
from studies.batches import Batches
from studies.stacked import train_together
from studies.statistics import estimate, paired
from studies.tables import Table, as_markdown

Split = tuple[Tensor, Tensor]
PAPER = fpe.Paper()


def _arms(pruned: str, partitions: dict[str, Partition], **fields: Any) -> dict[str, fpe.Expansion]:
    return {f"{name}, {pruned}": fpe.Expansion(partition=each, **fields) for name, each in partitions.items()}


GROUPS: dict[str, Partition] = {
    "shared": Shared(),
    "4 groups": Shared(groups=4),
    "4 contiguous groups": Contiguous(groups=4),
}
ARMS = {
    "random, incoming": fpe.Paper(prune="incoming"),
    **_arms("total", {**GROUPS, "2:4": SemiStructured()}),
    **_arms("columns", {**GROUPS, "8 groups": Shared(groups=8)}, prune="columns"),
    **_arms("columns, outgoing partitioned", GROUPS, prune="columns", outgoing="partition"),
}
"""Other partitions with the paper's pruning, and partitions in blocks with whole columns, which need no masks."""
MANY: dict[str, Partition] = {f"{groups} groups": Shared(groups=groups) for groups in (8, 16)}
LARGE = {
    **_arms("columns", MANY, prune="columns"),
    **_arms("columns, outgoing partitioned", MANY, prune="columns", outgoing="partition"),
}
"""Arms for wide layers, by name only."""
DENSE, PAPER_NAME = "dense", "random, total"
SPLIT_EPOCH, BATCH, RATE = 2, 256, 1e-2
"""The best rate of four on validation data, as in ``configs/clip_probe.yaml``."""


Key = tuple[int, int, str]
"""Width of the dense parent, alpha, name of the arm; the dense network has alpha 1."""


@dataclass
class Results:
    """The results of all runs.

    Attributes:
        accuracies: Per cent by seed, by part of the data and key.
        refusals: The message of ``expand`` for a refused arm, by key.
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
    parser.add_argument("--arms", nargs="+", metavar="GLOB", help=f"of {', '.join(ARMS | LARGE)}")
    parser.add_argument("--dataset", default="glyphs")
    parser.add_argument("--encoder", default="glyph-clip")
    options = parser.parse_args()
    globs = options.arms or []
    arms = [name for name in ARMS | LARGE if any(fnmatch(name, glob) for glob in globs)] if globs else list(ARMS)
    if not arms:
        parser.error(f"no arm matches {globs}; known: {', '.join(ARMS | LARGE)}")
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    data = load(options.dataset, options.encoder)
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for width in options.widths:
            for seed in progress.track(range(options.seeds), description=f"width {width}"):
                run(results, data, width, options.alphas, arms, options.epochs, seed)
    rows = ", ".join(f"{len(labels)} rows of {part}" for part, (_, labels) in data.items())
    print(f"{options.dataset}, {options.encoder}: {rows}; {options.epochs} epochs, {options.seeds} seeds\n")
    parts = [(part, alpha) for part in results.accuracies for alpha in options.alphas]
    tables = [table(results, part, options.widths, alpha, arms) for part, alpha in parts]
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


def run(
    results: Results,
    data: dict[str, Split],
    width: int,
    alphas: Sequence[int],
    arms: Sequence[str],
    epochs: int,
    seed: int,
) -> None:
    """Train every arm of one seed, and add its results."""
    torch.manual_seed(seed)
    parent = MLP(data["train"][0].shape[1], width, int(data["train"][1].max()) + 1)
    optimizer = Adam(parent.parameters(), lr=RATE, fused=True)
    train([parent], [optimizer], data["train"], range(SPLIT_EPOCH), seed)
    sites = fpe.find_sites(parent, data["train"][0][:2])
    for alpha in (1, *alphas):
        found: dict[str, tuple[MLP, Optimizer]] = {}
        for arm in (DENSE,) if alpha == 1 else (PAPER_NAME, *arms):
            network, own = copy.deepcopy((parent, optimizer))
            if alpha > 1:
                try:
                    expansion = replace((ARMS | LARGE).get(arm, PAPER), alpha=alpha, seed=seed)
                    fpe.expand(network, expansion, sites=sites, optimizer=own)
                except ValueError as error:  # the table shows that the rule does not fit this width and alpha
                    results.refusals[width, alpha, arm] = str(error)
                    continue
            found[arm] = network, own
        # All networks of one width train as one stack from here on.
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
    """Correctly classified rows, in per cent."""
    return 100 * float((network(split[0]).argmax(1) == split[1]).float().mean())


def table(results: Results, part: str, widths: Sequence[int], alpha: int, arms: Sequence[str]) -> Table:
    """The differences to the paper's rule on one part of the data."""
    found = results.accuracies[part]
    means = [
        (name, *(f"{estimate(found[width, one, arm]).mean:.1f}" for width in widths))
        for name, one, arm in (("dense, accuracy", 1, DENSE), (f"{PAPER_NAME} (paper), accuracy", alpha, PAPER_NAME))
    ]
    lines = [(arm, *(_cell(results, found, (width, alpha, arm)) for width in widths)) for arm in arms]
    title = f"alpha {alpha}, {NAMES[part]} accuracy in %, differences to the paper's rule"
    notes = [
        f"Refused: {arm} at width {width}: {why}"
        for (width, factor, arm), why in results.refusals.items()
        if factor == alpha
    ]
    return Table(title, ("partition, pruning", *(f"width {width}" for width in widths)), [*means, *lines], notes)


NAMES = {"val": "validation", "test": "test"}


def _cell(results: Results, found: dict[Key, dict[int, float]], key: Key) -> str:
    if key in results.refusals:
        return "refused"
    width, alpha, _ = key
    difference = paired(found[key], found[width, alpha, PAPER_NAME])
    text = f"{difference.mean:+.1f} ± {difference.error:.1f}"
    return f"**{text}**" if difference.low > 0 or difference.high < 0 else text


if __name__ == "__main__":
    main()
