"""Measure how the work of finding sites, splitting and training grows with the number of parameters.

python -m benchmarks.growth                 1 to 110 million parameters; prints the page and writes it
python -m benchmarks.growth --largest 420   up to 400 million, which takes 12 GiB of memory
python -m benchmarks.growth --largest 5     a quick look

Residual networks of two-layer blocks grow in depth (blocks of 256 and 1,024 neurons) or in width (4 blocks). Each size
runs in a process of its own, with one thread: `find_sites`, `expand` by the default rule at alpha 2, and training steps
of the wide network with AdamW. Times are seconds of the processor. Memory is the growth of the process from before the
network was built to the peak of its training. The exponents are slopes of least squares on logarithms: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks._timing import machine
from benchmarks.memory import MEGA, in_process, reset_peak, resident
from fpe_lightning.sites import find_sites

PAGE = Path("docs/results/growth.md")
DEEPER = [(256, blocks) for blocks in (2, 6, 20, 60, 200)]
WIDER = [(width, 4) for width in (256, 384, 640, 1024, 1792, 3584)]
BATCH, STEPS = 32, 3
BYTES = 30
"""Bytes of memory for each parameter that a run takes at most."""


ABOUT = """\
Residual networks of two-layer blocks grow in depth (256 and 1,024 neurons a block) or in width (4 blocks). Each size
has a process of its own. Times are seconds of the processor: `find_sites`, `expand` by the default rule at alpha 2, and
the fastest of three training steps of the wide network (AdamW, 32 rows). Memory is the growth of the process from
before the network was built to the peak of training. The exponents are slopes of least squares on logarithms: 1 is
linear, and less than 1 means that a constant part dominates."""


class Block(nn.Module):
    """A residual block of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what two layers make of ``(batch, width)``."""
        added: Tensor = self.out(F.gelu(self.into(self.norm(x))))
        return x + added


class Measured(NamedTuple):
    """The figures of one size; times in seconds of the processor, memory in MiB."""

    parameters: float
    sites: float
    find: float
    split: float
    step: float
    memory: float


def build(width: int, blocks: int) -> nn.Sequential:
    """A residual network with a head."""
    return nn.Sequential(*(Block(width) for _ in range(blocks)), nn.Linear(width, 10))


def size_of(width: int, blocks: int) -> int:
    """Parameters of :func:`build`.

    Example:
        >>> size_of(8, 2) == sum(parameter.numel() for parameter in build(8, 2).parameters())
        True
    """
    return blocks * (8 * width * width + 7 * width) + 10 * (width + 1)


def measure(width: int, blocks: int) -> tuple[float, ...]:
    """All figures of one size, in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    fpe.expand(build(64, 1), alpha=2, example_inputs=torch.zeros(2, 64))  # load all libraries before the measurement
    before = resident("VmRSS")
    reset_peak()
    model, x, target = build(width, blocks), torch.randn(BATCH, width), torch.randint(10, (BATCH,))
    start = time.process_time()
    sites = find_sites(model, x)
    found = time.process_time()
    fpe.expand(model, alpha=2, sites=sites)
    split = time.process_time()
    optimizer = torch.optim.AdamW(model.parameters())
    steps = []
    for _ in range(STEPS):
        begin = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
        steps.append(time.process_time() - begin)
    memory = (resident("VmHWM") - before) / MEGA
    return size_of(width, blocks), len(sites), found - start, split - found, min(steps), memory


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 3)
        2.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(max(value, 1e-9)) for value in values]
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def table(rows: Sequence[Measured]) -> str:
    """The figures of a family of networks, and their exponents in the last row."""
    lines = [
        "| parameters, million | sites | find, s | split, s | step, s | peak memory, MiB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.parameters / 1e6:.1f} | {row.sites:.0f} | {row.find:.3f} | {row.split:.3f} | {row.step:.3f} | "
            f"{row.memory:,.0f} |"
            for row in rows
        ),
    ]
    if len(rows) > 1:
        sizes = [row.parameters for row in rows]
        columns = zip(*((row.find, row.split, row.step, row.memory) for row in rows), strict=True)
        lines.append(f"| exponent | | {' | '.join(f'{exponent(sizes, values):.2f}' for values in columns)} |")
    return "\n".join(lines)


def available() -> float:
    """Bytes of memory that this machine can give (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def main() -> None:
    """Measure all sizes, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=float, default=110, help="million parameters")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    sections, skipped = [], []
    for title, sizes in (("Deeper", DEEPER), ("Wider", WIDER)):
        rows = []
        for width, blocks in sizes:
            count = size_of(width, blocks)
            needed, free = BYTES * count, available()
            if count > 1e6 * options.largest or needed > free:
                reason = (
                    f"{needed / 2**30:.0f} GiB needed, {free / 2**30:.0f} free" if needed > free else "not asked for"
                )
                skipped.append(f"{title.lower()}, {count / 1e6:.0f} million parameters ({reason})")
                continue
            rows.append(Measured(*in_process(partial(measure, width, blocks))))
            print(title, rows[-1], flush=True)
        sections.append(f"## {title}\n\n{table(rows)}")
    text = page(sections, skipped, options.largest)
    print(f"\n{text}")
    options.output.write_text(text)


def page(sections: Sequence[str], skipped: Sequence[str], largest: float) -> str:
    """The page in ``docs/results``."""
    where = machine(torch.device("cpu")).replace(f"{torch.get_num_threads()} threads", "1 thread")
    return (
        "\n\n".join(
            [
                "# Growth with the number of parameters",
                f"`python -m benchmarks.growth --largest {largest:g}`, {where}.",
                ABOUT,
                *sections,
                *([f"Left out: {'; '.join(skipped)}."] if skipped else []),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
