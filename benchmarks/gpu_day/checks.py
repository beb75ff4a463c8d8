"""The tests that need a GPU, and packing: what kernels compute, against the dense product."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

import fpe_lightning as fpe
from benchmarks._pairs import Case, dense_pair, split_pair
from benchmarks.gpu_day.rows import OK, REFUSED, REPLACED, Row, kernel_on, tried
from fpe_lightning.sparse import pack_for_inference, set_semi_structured

TESTS = Path(__file__).parents[2] / "tests" / "sparse" / "test_semi_structured_gpu.py"
MOST_SECONDS = 150
TOLERANCE = 2e-2


def gpu_tests(device: torch.device) -> Row:
    """Run the tests that are marked ``gpu``; on a CPU they skip themselves, which is checked too."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(TESTS)]
    kernel, status = kernel_on(device)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, cwd=TESTS.parents[2])
    except subprocess.TimeoutExpired:
        return Row("tests", "pytest -m gpu", kernel, REFUSED, f"not done after {MOST_SECONDS} s")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    summary = lines[-1].strip("= ") if lines else done.stderr.strip()[-300:]
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    # On a GPU, tests that skip themselves have shown nothing.
    passed = done.returncode == 0 and (status != OK or " passed" in f" {summary}") and "skipped" not in summary
    if status == REPLACED:
        passed = done.returncode == 0 and "skipped" in summary
    note = "; ".join([summary, *failures[:3]])
    return Row("tests", "pytest -m gpu", kernel, status if passed else REFUSED, note)


def packing(device: torch.device, small: bool) -> list[Row]:
    """Split a pair in 2:4 form, compare it with the masked layer, pack it, and compare again."""
    size = Case("", 128, 128, 64, 64, {}) if small else Case("", 1024, 1024, 128, 2048, {})
    rows = []
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        rows.append(tried("pack", name, kernel_on(device), partial(_packed, size, device, dtype)))
    return rows


def _packed(size: Case, device: torch.device, dtype: torch.dtype) -> str:
    ours = split_pair(dense_pair(size, device, dtype), 2, _expansion())
    masked = copy.deepcopy(ours)
    set_semi_structured(masked[0], on=False)
    x = torch.randn(size.batch, size.inputs, device=device, dtype=dtype)
    with torch.no_grad():
        expected = masked(x)
        before = _error(ours(x), expected)
        dense_bytes = ours[0].get_parameter("weight").nbytes
        pack_for_inference(ours)
        after = _error(ours(x), expected)
    packed_bytes = sum(buffer.nbytes for name, buffer in ours[0].named_buffers() if name.startswith("fpe_"))
    if max(before, after) > TOLERANCE:
        raise ArithmeticError(f"outputs differ by {before:.1e} in training form and {after:.1e} packed")
    return f"outputs within {max(before, after):.1e}; packed {packed_bytes / dense_bytes:.3f} of the bytes"


def _expansion() -> fpe.Expansion:
    return fpe.Expansion(partition="semi_structured", prune="incoming", layout="semi_structured")


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest entry."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())
