"""Check, train with and time every kernel that needs a GPU; in less than 8 minutes on one of them.

python -m benchmarks.gpu_day                  on all GPUs; the report is printed and written to results/gpu_day.md
python -m benchmarks.gpu_day --device cpu     the same on a CPU, small, where dense products stand in for kernels

Runs the tests that are marked `gpu`, packs 2:4 layers and compares them with masked ones, trains a 2:4 probe and a 2:4
FFN in bfloat16 under DDP (one process for each GPU), and times a step of an FFN in every layout at 2,048, 8,192 and
32,768 tokens. A kernel that refuses gets a row with its reason, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import fpe_lightning as fpe
from benchmarks._timing import machine
from benchmarks.gpu_day.checks import gpu_tests, packing
from benchmarks.gpu_day.compare import comparison
from benchmarks.gpu_day.ddp import training
from benchmarks.gpu_day.rows import REFUSED, REPLACED, Row, markdown, reason_of


def main(arguments: list[str] | None = None) -> int:
    """Run all steps, print and write the report; 1 if anything was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=Path("results/gpu_day.md"))
    parser.add_argument("--tests", action=argparse.BooleanOptionalAction, default=True, help="the tests marked `gpu`")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here (torch.cuda.is_available() is False): pass --device cpu.", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore", fpe.ExpansionWarning)
    device, small = torch.device(options.device), options.device == "cpu"
    steps: list[Callable[[], list[Row]]] = [
        *([lambda: [gpu_tests(device)]] if options.tests else []),
        lambda: packing(device, small),
        lambda: training(device, small),
        lambda: comparison(device, small),
    ]
    start, rows = time.perf_counter(), list[Row]()
    for step in steps:
        try:
            found = step()
        except Exception as error:  # whatever a step raises, the other ones run, and the report is written
            found = [Row("day", "a whole step", "unknown", REFUSED, reason_of(error))]
        rows += found
        for row in found:
            print(f"{row.status:8s} {row.step}: {row.what}: {row.kernel}: {row.note}", flush=True)
    report = page(rows, machine(device), time.perf_counter() - start)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report)
    print(f"\n{report}\nwritten to {options.output}")
    return int(any(row.status == REFUSED for row in rows))


def page(rows: list[Row], where: str, seconds: float) -> str:
    """The report.

    Example:
        >>> print(page([Row("pack", "bf16", "2:4, cutlass", "REFUSED", "no room")], "a GPU", 1.0).splitlines()[4])
        1 of 1 rows were REFUSED.
    """
    refused = sum(row.status == REFUSED for row in rows)
    replaced = sum(row.status == REPLACED for row in rows)
    lines = [
        "# One day with a GPU",
        "",
        f"{where}; {seconds:.0f} s",
        "",
        f"{refused} of {len(rows)} rows were REFUSED.",
    ]
    if replaced:
        lines.append(f"In {replaced} rows a dense product ran in place of a kernel: they say nothing about kernels.")
    return "\n".join([*lines, "", markdown(rows), ""])


if __name__ == "__main__":
    sys.exit(main())
