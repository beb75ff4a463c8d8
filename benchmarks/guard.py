"""Time a training step with the guard of masks (hooks of parameters and optimizers), against masks without it.

python -m benchmarks.guard                  an MLP of 1,024 neurons, and a small net
python -m benchmarks.guard --rounds 2000    steadier on a busy machine

Without the guard, a layer masks the gradient of its weight in its own backward pass, and nothing follows the step of
the optimizer. Both arms take turns, in CPU time of one thread; the last column is the median ratio of neighbours.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import fpe_lightning as fpe
from benchmarks._timing import machine
from fpe_lightning.sparse.guard import GUARDED, GradientMask

NETS = {
    "MLP 784-1024-1024-10, batch 128": (784, 512, 512, 10, 128),
    "small net 64-32-32-4, batch 32": (64, 16, 16, 4, 32),
}
"""Inputs, two hidden widths before the split by two, outputs, and batch."""


def step_of(
    sizes: tuple[int, ...], layout: Any, optimizer: type[torch.optim.Optimizer], guarded: bool
) -> Callable[[], None]:
    """A training step of a split network."""
    torch.manual_seed(0)
    inputs, first, second, outputs, batch = sizes
    layers = (nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, outputs))
    model, x = nn.Sequential(*layers), torch.randn(batch, inputs)
    fpe.expand(model, fpe.Paper(alpha=2, layout=layout), example_inputs=x)
    if not guarded:
        for parameter in model.parameters():
            hooks = parameter._backward_hooks or {}
            for key in [key for key, hook in hooks.items() if isinstance(hook, GradientMask)]:
                del hooks[key]
            vars(parameter).pop(GUARDED, None)
    steps, target = optimizer(model.parameters(), lr=1e-3), torch.randint(outputs, (batch,))  # type: ignore[call-arg]

    def step() -> None:
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        steps.step()

    return step


def compare(with_it: Callable[[], None], without: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """Time two arms in turns.

    Returns:
        The least seconds with and without, and the median of the ratios of neighbours.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(20):
        with_it()
        without()
    for number in track(range(rounds), "steps", transient=True):
        order = (True, False) if number % 2 else (False, True)
        for which in order:
            begin = time.process_time()
            (with_it if which else without)()
            times[which].append(time.process_time() - begin)
    ratios = [a / b for a, b in zip(times[True], times[False], strict=True)]
    return min(times[True]), min(times[False]), median(ratios)


def main() -> None:
    """Print one row for each net, layout and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400, help="steps of each arm")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    table = Table(title=f"Guard of masks: {machine(torch.device('cpu'))}")
    for column in (
        "net",
        "layout",
        "optimizer",
        "ms with, least",
        "ms without, least",
        "ratio of least",
        "median ratio",
    ):
        table.add_column(column, justify="left" if column in ("net", "layout", "optimizer") else "right")
    for name, layout, optimizer in itertools.product(NETS, ("masked", "folded"), (torch.optim.SGD, torch.optim.AdamW)):
        arms = [step_of(NETS[name], layout, optimizer, guarded) for guarded in (True, False)]
        many = rounds if NETS[name][1] > 100 else 10 * rounds
        least, base, ratio = compare(arms[0], arms[1], many)
        figures = (f"{1e3 * least:.3f}", f"{1e3 * base:.3f}", f"{least / base:.3f}", f"{ratio:.3f}")
        table.add_row(name, layout, optimizer.__name__, *figures)
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    main()
