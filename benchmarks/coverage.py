"""Find, prove, expand, train and reload the hidden widths of public architectures.

Run ``python -m benchmarks.coverage`` (about an hour on two cores), or with ``--quick`` (under two minutes). The run
covers every classification and segmentation model of torchvision, a sample of timm over all its families, both towers
of every open_clip config and six models of Hugging Face transformers. Each has random weights and its smallest input,
and runs in its own process. Results are appended to a CSV file; an interrupted run continues.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.coverage_checks import measure, memory_limit
from benchmarks.coverage_page import page
from benchmarks.coverage_row import Row
from benchmarks.coverage_table import print_report
from benchmarks.coverage_zoo import QUICK, QUICK_TIMM, Entry, catalogue

FIELDS = [field.name for field in dataclasses.fields(Row)]
UNFINISHED = ("memory", "time", "crash")
GIB_OF_MILLION = 0.024
"""Least memory per million parameters: the model in single precision, and the model and its copies in double."""


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Results so far by model; the last result of a model counts."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != FIELDS:
            raise ValueError(
                f"{path} has other columns than this version writes ({', '.join(reader.fieldnames or ())}): "
                "move it away, or pass another --output."
            )
        return {row["name"]: row for row in reader}


def append_row(path: Path, row: Row) -> dict[str, str]:
    """Append one result to the file, and return it as the file has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {name: "" if value is None else str(value) for name, value in dataclasses.asdict(row).items()}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(texts)
    return texts


def choose(entries: Sequence[Entry], patterns: Sequence[str] | None) -> list[Entry]:
    """The entries whose names match one of the globs."""
    return [entry for entry in entries if patterns is None or any(fnmatch(entry.name, p) for p in patterns)]


def run_one(entry: Entry, memory: float, seconds: float, threads: int = 1) -> Row:
    """Measure one model in its own process, which ends if it needs too much memory or time.

    Args:
        entry: The model.
        memory: Limit in GiB.
        seconds: Limit of wall time.
        threads: Number of cores that it may use.

    Returns:
        The last report of the process; the status tells how it ended.
    """
    if entry.skip is not None:
        return Row(entry.name, status="skipped", note=entry.skip)
    # A server imports the libraries once, and forks a clean process for each model. These settings keep glibc from
    # returning memory between two tensors: the kernel would clear it each time, a quarter of all the work.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**28))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.coverage_checks", "timm", "open_clip", "transformers"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(entry, memory, threads, sender), daemon=True)
    process.start()
    sender.close()
    row, end = Row(entry.name), time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            row = receiver.recv()
    except EOFError:  # the process has ended
        process.join()
        if process.exitcode == -signal.SIGKILL:  # by the kernel: the machine has less memory than all jobs may use
            return dataclasses.replace(row, status="memory", note=f"{row.note} killed for lack of memory".strip())
        if process.exitcode:
            return dataclasses.replace(row, status="crash", note=f"{row.note} exit code {process.exitcode}".strip())
        return row
    finally:
        receiver.close()
    process.kill()
    process.join()
    return dataclasses.replace(row, status="time", note=f"{row.note} stopped after {seconds:.0f} s".strip())


def _work(entry: Entry, memory: float, threads: int, sender: Connection) -> None:
    torch.set_num_threads(threads)
    with sender, memory_limit(memory):
        measure(entry, sender.send)


def run_all(entries: Sequence[Entry], jobs: int, memory: float, seconds: float, console: Console) -> Iterator[Row]:
    """Measure models under a progress bar, small ones first, and yield each row when it is ready.

    Args:
        entries: The models.
        jobs: Number of models at a time. Models that exceed the memory of a job follow, one at a time, with the cores
            and memory of all jobs.
        memory: GiB per job.
        seconds: Wall time per model.
        console: Console of the progress bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("models", total=len(entries))
        # Large models run alone, with the memory and the cores of all jobs.
        large = [entry for entry in entries if entry.size * GIB_OF_MILLION > memory]
        small = [entry for entry in entries if entry not in large]
        for row in _run(small, jobs, memory, seconds):
            if row.status == "memory" and jobs > 1:
                large.append(next(entry for entry in small if entry.name == row.name))
                continue
            bar.update(task, advance=1, description=row.name)
            yield row
        for row in _run(large, 1, jobs * memory, jobs * seconds, threads=jobs):
            bar.update(task, advance=1, description=row.name)
            yield row


def _run(entries: Sequence[Entry], jobs: int, memory: float, seconds: float, threads: int = 1) -> Iterator[Row]:
    with ThreadPoolExecutor(jobs) as pool:
        in_order = sorted(entries, key=lambda entry: entry.size)
        futures = [pool.submit(run_one, entry, memory, seconds, threads) for entry in in_order]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def default_memory(jobs: int) -> float:
    """Nine tenths of the free memory (Linux), divided by the number of jobs; GiB."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) / 2**20 * 0.9 / jobs


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run missing models, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a dozen small models, from scratch")
    parser.add_argument("--only", action="append", metavar="GLOB", help="models to run, such as 'timm/*'; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="models at a time (default: all cores)")
    parser.add_argument("--memory", type=float, help="GiB for each job (default: its share of 9/10 of the free memory)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each model (default: 300)")
    parser.add_argument("--output", type=Path, help="CSV file (default: results/coverage.csv)")
    parser.add_argument("--again", action="append", metavar="GLOB", help="repeat these models, even with a result")
    parser.add_argument("--retry", action="store_true", help="repeat models that ended for lack of memory or time")
    parser.add_argument("--report", action="store_true", help="run nothing, print the results of the file")
    parser.add_argument("--page", type=Path, help="write totals and refusals as Markdown")
    options = parser.parse_args(arguments)
    path = options.output or Path("results", "coverage-quick.csv" if options.quick else "coverage.csv")
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log has no width; names must stay whole
    if options.quick and not options.report:
        path.unlink(missing_ok=True)
    # The list of models, then the part without a usable result.
    kinds = {name.partition("/")[0] for name in options.only or ["*"]}
    sampled = not options.quick and any(fnmatch("timm", kind) for kind in kinds)  # picking the sample takes minutes
    entries = choose(catalogue(None if sampled else QUICK_TIMM), list(QUICK) if options.quick else None)
    entries = choose(entries, options.only)
    if not entries:
        parser.error(f"no model matches {options.only}; names are 'kind/model', such as 'torchvision/resnet18'")
    rows = read_rows(path)
    missing = [
        entry
        for entry in entries
        if entry.name not in rows
        or (options.retry and rows[entry.name]["status"] in UNFINISHED)
        or any(fnmatch(entry.name, glob) for glob in options.again or ())
    ]
    if not options.report:
        memory = options.memory or default_memory(options.jobs)
        for row in run_all(missing, options.jobs, memory, options.timeout, console):
            rows[row.name] = append_row(path, row)
    done = [rows[entry.name] for entry in entries if entry.name in rows]
    print_report(done, len(entries), console)
    console.print(f"results: {path}")
    if options.page:
        options.page.write_text(page(done, [entry.name for entry in entries if entry.name not in rows]))
        console.print(f"page: {options.page}")


if __name__ == "__main__":
    main()
