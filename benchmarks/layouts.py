"""Time the wide sparse pair of layers against its dense parent with the same number of non-zeros.

python -m benchmarks.layouts                       all shapes, on the CPU
python -m benchmarks.layouts --case FFN --alpha 2  some
python -m benchmarks.layouts --dtype bf16-mixed    fp32 weights under bfloat16 autocast
python -m benchmarks.layouts --device cuda         on a GPU, at 2048, 8192 and 32768 tokens

Every table is one run: its arms take turns, and each figure is the median of its rounds (``--figure least`` on a
machine that does other work too). Rows that start with "grouped" store and compute only the non-zeros, and rows that
start with "folded" store only them; the others also store zeros. `pip install fpe_lightning[bench]` adds rows for
rigl-torch and sparselab.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from benchmarks._pairs import (
    CASES,
    EXPANSIONS,
    HEADING,
    SEMI_STRUCTURED,
    Case,
    RigLScheduler,
    csr_pair,
    dense_pair,
    label,
    pruned_pair,
    rigl_pair,
    sparselab,
    sparselab_pair,
    split_pair,
    work,
)
from benchmarks._timing import CLOCKS, FIGURES, interleaved, machine
from fpe_lightning.sparse import structure_of

TOKENS = (2048, 8192, 32768)
DTYPES, MIXED = ("float32", "bfloat16", "float16"), "bf16-mixed"


def main() -> None:
    """Print one table for each shape and alpha."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="only shapes whose name contains this")
    parser.add_argument("--alpha", type=int, default=None, help="only this expansion factor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", default=None, choices=[*DTYPES, MIXED], help="of the weights; float32, on GPUs bfloat16 by default"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--seconds", type=float, default=15.0, help="about how long each table takes")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help='"cpu" on a busy machine, with one thread')
    parser.add_argument("--figure", choices=FIGURES, default="median", help='of the rounds; "least" on a busy machine')
    parser.add_argument("--others", action=argparse.BooleanOptionalAction, default=True, help="rows of other libraries")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    precision = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    console = Console()
    console.print(f"{machine(device)}, {precision}, {options.clock} time")
    cases = [case for case in CASES if options.case in case.name]
    if device.type == "cuda":
        cases = [replace(case, batch=tokens) for case in cases if case.train for tokens in TOKENS]
    for case in cases:
        for alpha in case.targets if options.alpha is None else [options.alpha]:
            clock = (options.seconds, options.clock, options.figure)
            console.print(measure(case, alpha, device, precision, clock, options.others))


def measure(
    case: Case, alpha: int, device: torch.device, precision: str, clock: tuple[float, str, str], others: bool
) -> Table:
    """Time one shape at one alpha."""
    torch.manual_seed(0)
    mixed = precision == MIXED
    dtype = torch.float32 if mixed else getattr(torch, precision)
    x = torch.randn(case.batch, case.inputs, device=device, dtype=dtype)
    target = torch.randint(case.outputs, (case.batch,), device=device)
    dense = dense_pair(case, device, dtype)
    nonzeros = sum(parameter.numel() for parameter in dense.parameters())
    arms: dict[str, Callable[[], object]] = {"dense parent": work(dense, case, x, target, mixed)}
    stored = {"dense parent": nonzeros}
    notes: list[str] = []

    def add(name: str, make: Callable[[], torch.nn.Module | tuple[torch.nn.Module, torch.optim.Optimizer]]) -> None:
        try:
            made = make()
            pair, optimizer = made if isinstance(made, tuple) else (made, None)
            run = work(pair, case, x, target, mixed, optimizer)
            run()
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            notes.append(f"left out: {name}: {str(error).splitlines()[0]}")
            return
        arms[name] = run
        if name.startswith("auto"):
            grouped = [key for key, module in pair.named_modules() if structure_of(module) is not None]
            notes.append(f"{name}: took blocks for {' and '.join(grouped)}" if grouped else f"{name}: took masked")
        stored[name] = sum(parameter.numel() for parameter in pair.parameters())

    # A CPU multiplies the 2:4 form densely, so its row would have no meaning.
    for way in (*EXPANSIONS, SEMI_STRUCTURED) if device.type == "cuda" else EXPANSIONS:
        add(label(way), lambda way=way: split_pair(dense, alpha, way, case.batch, case.train, mixed))  # type: ignore[misc]
    if others:
        masked = split_pair(dense, alpha, EXPANSIONS[0])
        add("torch.nn.utils.prune", lambda: pruned_pair(masked))
        add("torch.sparse CSR", lambda: csr_pair(masked))
        if device.type == "cpu" and dtype == torch.float32:
            if sparselab is not None:
                add("sparselab", lambda: sparselab_pair(case, alpha))
            if RigLScheduler is not None and case.train:
                add("rigl-torch", lambda: rigl_pair(case, alpha))
    seconds, kind, figure = clock
    times = interleaved(arms, seconds, label=f"{case.name}, alpha {alpha}", clock=kind, figure=figure)
    return _table(case, alpha, times, stored, notes)


def _table(case: Case, alpha: int, times: dict[str, float], stored: dict[str, int], notes: list[str]) -> Table:
    what = "step" if case.train else "forward"
    target, folded = case.targets.get(alpha), case.folded.get(alpha)
    shape = f"d={case.inputs}, h={case.hidden}, C={case.outputs}, batch {case.batch}"
    aim = "" if target is None else f", target {target:g}x" + (f", folded {folded:g}x" if folded else "")
    caption = "\n".join(notes) or None
    table = Table(title=f"{case.name}: {shape}, alpha {alpha}{aim}", caption=caption, caption_justify="left")
    table.add_column(HEADING)
    for column in (f"ms a {what}", "of the dense parent", "stored weights", "on target"):
        table.add_column(column, justify="right")
    base, base_stored = times["dense parent"], stored["dense parent"]
    for name, seconds in times.items():
        ratio = seconds / base
        own = folded if name.startswith("folded") else target
        met = "" if own is None or name == "dense parent" else ("yes" if ratio <= own else "no")
        table.add_row(name, f"{1e3 * seconds:.3f}", f"{ratio:.2f}x", f"{stored[name] / base_stored:.2f}x", met)
    return table


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*(Sparse|sparse).*beta.*")
    main()
