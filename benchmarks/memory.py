"""Measure the training memory of the wide sparse pair of layers against its dense parent with the same non-zeros.

python -m benchmarks.memory                 alpha 2, 4 and 8; then the split itself
python -m benchmarks.memory --inputs 4096   a larger pair

Each row is a separate process. "counted" adds the bytes of parameters, gradients, AdamW's state, masks and codes.
"resident" is the growth of the process from before it built the pair to the peak of three training steps (Linux). The
last table is the split of the pair with its optimizer: its time, and its peak memory in units of the dense pair.

By default, glibc keeps freed memory and fragments it, so that resident memory depends more on the order of allocations
than on layouts. All rows therefore return tensors above 1 MiB to the system when they are freed;
`--mmap-threshold 0` measures glibc's default.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import fpe_lightning as fpe
from benchmarks._pairs import HEADING, Case, dense_pair, label, split_pair
from fpe_lightning.partitions import Contiguous
from fpe_lightning.sparse.folded.layers import FoldPlan

EXPANSIONS = (
    fpe.Paper(layout="masked", prune="incoming"),
    fpe.Paper(layout="folded", prune="incoming"),
    fpe.Paper(layout="folded", outgoing="partition"),
    fpe.Blocks(groups=4, prune="total"),
    fpe.Blocks(groups=4),
    fpe.Expansion(partition=Contiguous(groups=4), prune="columns", layout="grouped"),
    fpe.Blocks(groups=8, outgoing="partition"),
)
BATCH = 32  # small, so that weights, gradients and optimizer state are most of the memory
MEGA = 2**20


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2048, help="inputs and hidden neurons of the dense parent")
    parser.add_argument("--outputs", type=int, default=100)
    parser.add_argument("--alphas", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--split", type=int, default=4096, help="inputs and hidden neurons of the pair that is split")
    parser.add_argument("--mmap-threshold", type=int, default=2**20, help="bytes; 0 leaves it to glibc")
    options = parser.parse_args()
    if options.mmap_threshold:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(options.mmap_threshold)  # the measured processes read it
    case = Case("", options.inputs, options.inputs, options.outputs, BATCH, {})
    console = Console()
    console.print(_training(case, options.alphas))
    console.print(_splitting(Case("", options.split, options.split, options.outputs, BATCH, {})))


def _training(case: Case, alphas: list[int]) -> Table:
    size = f"d=h={case.inputs}, C={case.outputs}"
    table = Table(title=f"training: {size}, AdamW, fp32, of the dense parent")
    table.add_column(HEADING)
    for column in ("alpha", "counted", "codes and masks in it", "sent by DDP", "checkpoint", "resident"):
        table.add_column(column, justify="right")
    dense = in_process(partial(train, case, None, 1))
    counted, _, sent, saved, resident = (f"{size / MEGA:.0f} MiB" for size in dense)
    table.add_row("dense parent", "1", counted, "", sent, saved, resident)
    for way, alpha in track([(way, alpha) for alpha in alphas for way in EXPANSIONS], "training", transient=True):
        try:
            ours = in_process(partial(train, case, way, alpha))
        except RuntimeError:  # too little is left for all copies; the process has said so
            continue
        # A dense pair has no codes.
        ratios = [one / max(1, other) for one, other in zip(ours, dense, strict=True)]
        counted, _, sent, saved, resident = (f"{ratio:.3f}x" for ratio in ratios)
        table.add_row(label(way), str(alpha), counted, f"{ours[1] / ours[0]:.3f}", sent, saved, resident)
    return table


def _splitting(case: Case) -> Table:
    table = Table(title=f"the split itself: d=h={case.inputs}, C={case.outputs}, alpha 4, AdamW state included")
    table.add_column(HEADING)
    table.add_column("seconds", justify="right")
    table.add_column("of the CPU", justify="right")
    table.add_column("peak, of the pair with its gradients and state", justify="right")
    for way in track(EXPANSIONS, "splitting", transient=True):
        try:
            seconds, busy, peak = in_process(partial(split, case, way, 4))
        except RuntimeError:  # too little is left for all copies; the process has said so
            continue
        table.add_row(label(way), f"{seconds:.2f}", f"{busy:.2f}", f"{peak:.2f}x")
    return table


def train(case: Case, way: fpe.Expansion | None, alpha: int) -> tuple[float, ...]:
    """Bytes of a pair after three training steps.

    Returns:
        Those of parameters, gradients, AdamW's state and buffers; of buffers and plans alone; those that DDP sends in a
        step; those of a checkpoint; and the growth of this process.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.pt")
        in_process(partial(_save, case, way, alpha, file))  # in another process, so that the split does not count
        for form in (
            None,
            fpe.Blocks(groups=1),
            fpe.Paper(layout="folded"),
        ):  # load all libraries before the measurement
            small = dense_pair(Case("", 64, 8, 4, BATCH, {}), torch.device("cpu"), torch.float32)
            fpe.load_expanded_state_dict(small, (small if form is None else split_pair(small, 2, form)).state_dict())
            _steps(small, torch.optim.AdamW(small.parameters()), 64, 4)
        before = resident("VmRSS")
        reset_peak()
        pair = dense_pair(case, torch.device("cpu"), torch.float32)
        fpe.load_expanded_state_dict(pair, torch.load(file, mmap=True))
        optimizer = torch.optim.AdamW(pair.parameters())
        _steps(pair, optimizer, case.inputs, case.outputs)
        grown = resident("VmHWM") - before
        torch.save({"model": pair.state_dict(), "optimizer": optimizer.state_dict()}, file)
        sent = sum(parameter.numel() * parameter.element_size() for parameter in pair.parameters())
        return _counted(pair, optimizer), _structures(pair), sent, file.stat().st_size, grown


def split(case: Case, way: fpe.Expansion, alpha: int) -> tuple[float, ...]:
    """Wall and CPU seconds of a split, and its peak memory in units of the dense pair in training."""
    pair = dense_pair(case, torch.device("cpu"), torch.float32)
    optimizer = torch.optim.AdamW(pair.parameters())
    _steps(pair, optimizer, case.inputs, case.outputs)
    example, size, before = torch.zeros(1, case.inputs), _counted(pair, optimizer), resident("VmRSS")
    # Tracing is not part of the measured split.
    sites = fpe.find_sites(pair, example)
    reset_peak()
    start, busy = time.perf_counter(), time.process_time()
    fpe.expand(pair, replace(way, alpha=alpha), sites=sites, optimizer=optimizer)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return seconds, busy, (size + resident("VmHWM") - before) / size


def _save(case: Case, way: fpe.Expansion | None, alpha: int, file: Path) -> tuple[float, float]:
    pair = dense_pair(case, torch.device("cpu"), torch.float32)
    torch.save((pair if way is None else split_pair(pair, alpha, way)).state_dict(), file)
    return 0.0, 0.0


def _steps(pair: nn.Module, optimizer: torch.optim.Optimizer, inputs: int, outputs: int) -> None:
    x, target = torch.randn(BATCH, inputs), torch.randint(outputs, (BATCH,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(pair(x), target).backward()
        optimizer.step()


def _structures(pair: nn.Module) -> float:
    """Bytes of masks and codes, with the copies that folded layers compute from."""
    plans = [vars(module).get("fpe_plan") for module in pair.modules()]
    copies = [plan.codes for plan in plans if isinstance(plan, FoldPlan)]
    return float(sum(tensor.nbytes for tensor in [*pair.buffers(), *copies]))


def _counted(pair: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    tensors: list[Any] = [*pair.parameters(), *(parameter.grad for parameter in pair.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return _structures(pair) + sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def resident(field: str) -> int:
    """Resident bytes of this process: ``"VmRSS"`` at present, ``"VmHWM"`` at the peak (Linux)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def reset_peak() -> None:
    """Reset the peak of the resident memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def in_process(function: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """Call a function in a fresh process, and return its result."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the measured process failed; its error is printed above") from None
    finally:
        process.join()


def _send(function: Callable[[], tuple[float, ...]], sender: Any) -> None:
    sender.send(function())


if __name__ == "__main__":
    main()
