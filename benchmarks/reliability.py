"""Try to break what is promised: ``python -m benchmarks.reliability [--quick]``.

It kills fits, encoders, widenings of checkpoints and studies at random moments, tampers with checkpoints, gives bad
command lines, and splits random structures. Everything follows from ``--seed`` but the moments in which a process is
when it dies. The table says what was tried and what held; every fault is printed.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.reliability_cases import Outcome, bad_input, structures, tampered
from benchmarks.reliability_kills import JOBS, kill
from fpe_lightning import __version__

PAGE = Path(__file__).parents[1] / "docs" / "results" / "reliability.md"
PROMISES = {
    "kills": "ends as the undisturbed run, to the bit",
    "tampered checkpoints": "loaded and right, or one sentence and nothing changed",
    "bad command lines": "runs, or one sentence and exit code 2",
    "random structures": "same count, masks hold, loads exactly, refusals change nothing",
}


def table(found: dict[str, Outcome]) -> str:
    """The results in Markdown.

    Example:
        >>> print(table({"kills of fits": (3, 3, [])}))
        | trial | promise | tried | held |
        |---|---|---:|---:|
        | kills of fits | ends as the undisturbed run, to the bit | 3 | 3 |
    """
    lines = ["| trial | promise | tried | held |", "|---|---|---:|---:|"]
    for name, (tried, held, _) in found.items():
        lines.append(f"| {name} | {PROMISES['kills' if name.startswith('kills') else name]} | {tried:,} | {held:,} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Run the trial, print the table, and write it where asked.

    Returns:
        0 where everything held, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="A few of everything, in about two minutes.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, help="Kills of each kind of job; 50, or 3 with --quick.")
    parser.add_argument("--tampered", type=int, help="2,000, or 100 with --quick.")
    parser.add_argument("--bad", type=int, help="300, or 10 with --quick.")
    parser.add_argument("--structures", type=int, help="10,000, or 20 with --quick.")
    parser.add_argument("--write", action="store_true", help=f"Write the table to {PAGE.name} of the results.")
    options = parser.parse_args(words)
    quick = options.quick
    counts = {
        "kills": options.kills if options.kills is not None else (3 if quick else 50),
        "tampered checkpoints": options.tampered if options.tampered is not None else (100 if quick else 2000),
        "bad command lines": options.bad if options.bad is not None else (10 if quick else 300),
        "random structures": options.structures if options.structures is not None else (20 if quick else 10_000),
    }
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    console, found = Console(soft_wrap=True), {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FPE_CACHE"] = str(Path(folder, "cache"))
        for name in JOBS if counts["kills"] else ():
            found[f"kills of {name}"] = kill(name, counts["kills"], Path(folder, name.replace(" ", "_")), options.seed)
            console.print(f"kills of {name}: {found[f'kills of {name}'][:2]}")
        for name, trial in (
            ("tampered checkpoints", tampered),
            ("random structures", structures),
            ("bad command lines", bad_input),
        ):
            if counts[name]:
                found[name] = trial(counts[name], options.seed)
                console.print(f"{name}: {found[name][:2]}")
    console.print(table(found), markup=False)
    faults = [f"{name}: {fault}" for name, outcome in found.items() for fault in outcome[2]]
    for fault in faults:
        console.print(fault, markup=False)
    if options.write:
        PAGE.write_text(page(found, options.seed))
    return 1 if faults else 0


def page(found: dict[str, Outcome], seed: int) -> str:
    """The page of results."""
    day = datetime.now(timezone.utc).date()
    return (
        "# Reliability\n\n"
        f"What was tried to break version {__version__}, on {day}, on a CPU, with torch {torch.__version__}, by\n"
        f"`python -m benchmarks.reliability --seed {seed}`, and how often the promise held.\n\n{table(found)}\n\n"
        "Kills are SIGKILL at a random moment of the job, one to three in a row; then the job runs to its end. A fit\n"
        "validates, splits twice and saves after every step, and goes on from its newest checkpoint. Tampered\n"
        "checkpoints are of every layout, with one to three changes of records, masks and weights.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
