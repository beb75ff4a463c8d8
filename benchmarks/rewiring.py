"""Time training steps inside of the window of ``Rewire`` next to the same steps outside of it, and one update.

python -m benchmarks.rewiring                 on the CPU, for three widths
python -m benchmarks.rewiring --hidden 4096   for others

Every table is one run: its arms take turns, and each figure is the median of its rounds, as a ratio to the dense parent
of as many non-zeros.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.rewiring import GradientSums, movable_weights

ARMS = ("dense parent", "masked", "masked, in the window", "folded", "folded, in the window")


def pair(kind: str, inputs: int, hidden: int, alpha: int) -> nn.Sequential:
    """A pair of linear layers, split in ``alpha`` unless it is the dense parent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 64))
    if kind != "dense parent":
        layout: Any = kind.partition(",")[0]
        expansion = fpe.Paper(alpha=alpha, prune="incoming", layout=layout)
        fpe.expand(model, expansion, sites=["0"], example_inputs=torch.randn(2, inputs))
    return model


def step_of(kind: str, inputs: int, hidden: int, alpha: int, batch: int) -> Callable[[], object]:
    """A training step with AdamW."""
    model = pair(kind, inputs, hidden, alpha)
    optimizer, x = torch.optim.AdamW(model.parameters()), torch.randn(batch, inputs)
    if kind.endswith("window"):
        sums = GradientSums(movable_weights(model)[0], turns=8)
        sums.start()
        optimizer.gradient_sums = sums  # type: ignore[attr-defined]  # held as long as the step

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def medians(steps: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The median seconds of each step; they take turns."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 2):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if number > 1:
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--alpha", type=int, default=4)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args(arguments)
    table = Table(title=f"{given.inputs} inputs, alpha {given.alpha}, batches of {given.batch}")
    for heading in ("hidden", *ARMS, "one update, in dense steps"):
        table.add_column(heading, justify="right")
    for hidden in given.hidden:
        steps = [step_of(kind, given.inputs, hidden, given.alpha, given.batch) for kind in ARMS]
        dense, *others = medians(steps, given.rounds)
        model = pair("masked", given.inputs, hidden, given.alpha)
        gradient = {"0.weight": torch.randn(hidden * given.alpha, given.inputs)}
        [update] = medians([functools.partial(fpe.rewire, model, gradient)], 3)
        row = [f"{dense * 1e3:.1f} ms", *(f"{each / dense:.2f}" for each in others), f"{update / dense:.1f}"]
        table.add_row(str(hidden), *row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
