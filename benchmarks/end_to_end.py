"""Train whole networks for a fixed number of steps: the dense parent against its expansion in each layout.

python -m benchmarks.end_to_end                            all three networks, on the CPU
python -m benchmarks.end_to_end --task probe --steps 300   one of them
python -m benchmarks.end_to_end --device cuda --precision bf16

The networks are a probe on CLIP embeddings, the feed-forward halves of two ViT-S blocks, and a small CNN whose head is
split. The split comes after a fifth of the steps; the number of non-zeros is constant. Accuracy (after the last step)
and peak memory come from runs in separate processes. Times are medians of steps of all networks in turn, after the
split. Without 2:4 kernels, "semi_structured" multiplies densely, so its row only shows the accuracy of the structure.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Generator, Tensor, nn

import fpe_lightning as fpe
from benchmarks._networks import TASKS, Split, Task, load
from benchmarks._pairs import HEADING, SEMI_STRUCTURED, label
from benchmarks._timing import CLOCKS, interleaved, machine
from benchmarks.memory import MEGA, in_process, reset_peak, resident


def expansions_of(task: Task) -> list[fpe.Expansion]:
    """The compared expansions of a network."""
    blocks = [fpe.Blocks(groups=4, outgoing=task.outgoing, layout=layout) for layout in ("masked", "grouped", "auto")]
    return [fpe.Paper(), *blocks, SEMI_STRUCTURED]


def main() -> None:
    """Print one table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--alpha", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long the steps of a network are timed")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help='"cpu" on a busy machine')
    options = parser.parse_args()
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MEGA))  # read by the runs; see benchmarks.memory
    console = Console()
    console.print(machine(torch.device(options.device)))
    for name in TASKS if options.task == "all" else [options.task]:
        console.print(compare(name, options))


def compare(name: str, options: argparse.Namespace) -> Table:
    """Train and time one network in every layout."""
    task = TASKS[name]
    data = load(task)
    ways = [None, *(way for way in expansions_of(task) if options.alpha == 2 or way.layout != "semi_structured")]
    results, notes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "data.pt")
        torch.save(data, file)
        for way in track(ways, f"{name}: training", transient=True):
            results[way] = in_process(partial(run, name, way, file, options))
    # Times come from all networks in one process, in turns, after their splits.
    arms = {}
    for way in ways:
        network = task.make().to(options.device)
        if way is not None:
            split(network, task, way, options, data[0][0][: task.batch].to(options.device), None)
            held = sorted({type(module).__name__ for module in network.modules() if hasattr(module, "fpe_blocks")})
            if way.layout == "auto":
                notes.append(f"auto took {', '.join(held) or 'masked layers'}")
        arms[name_of(way)] = stepper(network, task, data[0], options)
    times = interleaved(arms, options.seconds, label=f"{name}: timing", clock=options.clock)
    title = f"{name}, alpha {options.alpha}, {options.steps} steps of {task.batch}, {options.precision}"
    table = Table(title=title, caption="\n".join(notes), caption_justify="left")
    table.add_column(HEADING)
    for column in ("ms a step", "of the dense parent", "peak MiB", "of the dense parent", "accuracy"):
        table.add_column(column, justify="right")
    dense_time, dense_peak = times["dense parent"], results[None][1]
    for way in ways:
        name = name_of(way)
        accuracy, peak = results[way]
        cells = (1e3 * times[name], times[name] / dense_time, peak / MEGA, peak / dense_peak, 100 * accuracy)
        table.add_row(name, *(form.format(cell) for form, cell in zip(FORMS, cells, strict=True)))
    return table


def name_of(way: fpe.Expansion | None) -> str:
    """The name of an arm in tables."""
    return "dense parent" if way is None else label(way)


FORMS = ("{:.1f}", "{:.2f}x", "{:.0f}", "{:.2f}x", "{:.1f} %")


def run(name: str, way: fpe.Expansion | None, file: Path, options: argparse.Namespace) -> tuple[float, ...]:
    """Test accuracy of one run, and its peak memory in bytes above the memory of the process before it."""
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    torch.manual_seed(options.seed)
    task, device = TASKS[name], torch.device(options.device)
    train, test = torch.load(file)  # not mapped: pages that training reads would count as memory
    _train_steps(nn.Linear(8, 8), torch.randn(8, 8), torch.zeros(8, dtype=torch.int64))  # load all libraries first
    before = 0 if device.type == "cuda" else resident("VmRSS")
    network = task.make().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=task.rate)
    order = Generator().manual_seed(options.seed)
    for step in range(options.steps):
        rows = torch.randint(len(train[0]), (task.batch,), generator=order)
        x, y = train[0][rows].to(device), train[1][rows].to(device)
        if step == options.steps // 5 and way is not None:
            split(network, task, way, options, x, optimizer)
        if step == options.steps // 5 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif step == options.steps // 5:
            reset_peak()
        train_step(network, optimizer, x, y, options)
    peak = float(torch.cuda.max_memory_allocated() if device.type == "cuda" else resident("VmHWM") - before)
    return accuracy_of(network.eval(), test, device, options), peak


def split(
    network: nn.Module,
    task: Task,
    way: fpe.Expansion,
    options: argparse.Namespace,
    x: Tensor,
    optimizer: torch.optim.Adam | None,
) -> None:
    """Split a network as asked."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=options.precision == "bf16" and way.layout == "auto"):
        fpe.expand(
            network,
            replace(way, alpha=options.alpha, seed=options.seed),
            sites=task.sites,
            optimizer=optimizer,
            example_inputs=x,
        )


def train_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, options: argparse.Namespace
) -> None:
    """One step of training."""
    optimizer.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        out = network(x)
    F.cross_entropy(out.float(), y).backward()
    optimizer.step()


def stepper(network: nn.Module, task: Task, train: Split, options: argparse.Namespace) -> Callable[[], object]:
    """The timed function: a step, always on the same batch."""
    x, y = train[0][: task.batch].to(options.device), train[1][: task.batch].to(options.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=task.rate)
    return partial(train_step, network, optimizer, x, y, options)


@torch.no_grad()
def accuracy_of(network: nn.Module, test: Split, device: torch.device, options: argparse.Namespace) -> float:
    """The share of correctly classified test samples."""
    right = 0
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        for x, y in zip(test[0].split(256), test[1].split(256), strict=True):
            right += int((network(x.to(device)).argmax(1).cpu() == y).sum())
    return right / len(test[1])


def _train_steps(network: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.Adam(network.parameters())
    train_step(network, optimizer, x, y, argparse.Namespace(precision="fp32"))


if __name__ == "__main__":
    main()
