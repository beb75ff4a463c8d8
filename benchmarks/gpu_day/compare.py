"""Time training steps of every layout against the dense parent, by CUDA events, with warm-up and clocks noted."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

import fpe_lightning as fpe
from benchmarks._pairs import Case, dense_pair, split_pair, work
from benchmarks.gpu_day.rows import OK, REFUSED, Row, kernel_on, reason_of

LARGE, LARGE_TOKENS = Case("FFN", 768, 3072, 768, 0, {}), (2048, 8192, 32768)
SMALL, SMALL_TOKENS = Case("FFN", 64, 256, 64, 0, {}), (64, 128, 256)
WARM_UP, ROUNDS = 5, 25
ALPHA = 2

SHARED: dict[str, Any] = {"prune": "incoming", "outgoing": "partition"}
"""An FFN reads as many weights as read it, so that no layout could pay for copies of the latter."""
LAYOUTS: dict[str, fpe.Expansion] = {
    "masked": fpe.Paper(**SHARED, layout="masked"),
    "folded": fpe.Paper(**SHARED, layout="folded"),
    "grouped": fpe.Blocks(groups=4, outgoing="partition"),
    "semi_structured": fpe.Expansion(partition="semi_structured", layout="semi_structured", **SHARED),
}
"""One expansion for each layout, at alpha 2."""


def comparison(device: torch.device, small: bool) -> list[Row]:
    """One row for each layout and number of tokens: the time of a step, of that of the dense parent."""
    shape, counts = (SMALL, SMALL_TOKENS) if small else (LARGE, LARGE_TOKENS)
    return [row for tokens in counts for row in _at(replace(shape, batch=tokens), device, 5 if small else ROUNDS)]


def _at(case: Case, device: torch.device, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    x = torch.randn(case.batch, case.inputs, device=device)
    target = torch.randint(case.outputs, (case.batch,), device=device)
    dense = dense_pair(case, device, torch.float32)
    arms: dict[str, Callable[[], object]] = {"dense": work(dense, case, x, target, mixed=True)}
    rows, kernels = [], {}
    where = f"{case.name} {case.inputs}-{case.hidden}-{case.outputs}, {case.batch} tokens"
    for name, expansion in LAYOUTS.items():
        kernels[name] = kernel_on(device) if name == "semi_structured" else (f"{name} product", OK)
        try:
            run = work(split_pair(dense, ALPHA, expansion, case.batch, mixed=True), case, x, target, mixed=True)
            run()
        except Exception as error:  # a kernel may raise anything; the other layouts are timed all the same
            rows.append(Row("time", f"{name}, {where}", kernels[name][0], REFUSED, reason_of(error)))
            continue
        arms[name] = run
    before = clocks(device)
    times = timed(arms, device, rounds)
    after = clocks(device)
    noted = f"clocks {before} to {after}"
    rows.append(Row("time", f"dense, {where}", "dense product", OK, f"{1e3 * times['dense']:.3f} ms a step; {noted}"))
    for name, seconds in times.items():
        if name != "dense":
            ratio = f"{1e3 * seconds:.3f} ms a step, {seconds / times['dense']:.2f}x of the dense parent"
            rows.append(Row("time", f"{name}, {where}", *kernels[name], ratio))
    return rows


def timed(arms: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """The median time of each arm in seconds; the arms take turns, so that a change of clocks meets all of them."""
    for run in arms.values():
        for _ in range(WARM_UP):
            run()
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            found[name].append(_seconds(run, device))
    return {name: median(times) for name, times in found.items()}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    # Events are recorded by the GPU itself: what the CPU does meanwhile does not count.
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def clocks(device: torch.device) -> str:
    """The clocks of the GPU and of its memory at present.

    Example:
        >>> clocks(torch.device("cpu"))
        'unknown'
    """
    if device.type != "cuda":
        return "unknown"
    query = ["nvidia-smi", f"--id={device.index or 0}", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
