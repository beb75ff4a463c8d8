"""``python -m studies STUDY --config FILE``: run a grid, or the rest of it, and report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from studies.errors import StudyError, exit_code
from studies.parser import Parser, check_keys, sentence_of
from studies.ray_runner import check_ray
from studies.registry import STUDIES, study_named
from studies.report import write_report
from studies.results import Results
from studies.runner import run_study
from studies.runs import Runs
from studies.setting import Setting
from studies.statistics import in_words
from studies.study import Study, on_grid, seconds_of


def main(words: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run a study from the command line.

    Args:
        words: Command line; None takes that of the process.
        console: Where to print.

    Returns:
        The exit code: 0, or 2 after bad input.
    """
    console = console or Console()
    try:
        return exit_code(lambda: _run(list(sys.argv[1:] if words is None else words), console), console)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from the runs that are finished.")
        return 130


def _run(words: list[str], console: Console) -> None:
    name = words[0] if words and not words[0].startswith("-") else ""
    if not name and {"-h", "--help"} & set(words):
        console.print(f"Usage: python -m studies STUDY --config FILE\nStudies: {', '.join(STUDIES)}; add --help.")
        return
    kind: Any = study_named(name)
    parser = Parser(prog=f"python -m studies {name}", parser_mode="omegaconf+", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_argument("--settings", type=dict[str, kind], help="Data, sizes and training of the networks, by name.")
    parser.add_argument(
        "--grid", type=list[dict[str, list[Any]]], default=[], help="Lists of values; each setting takes all of them."
    )
    parser.add_class_arguments(Study, skip={"settings"})
    parser.add_argument(
        "--output", type=str, default=f"results/{name.rpartition('.')[2]}", help="Folder of results, table and figure."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Processes, of Ray too where it is local.")
    parser.add_argument(
        "--ray", type=str, default=None, help="Run on Ray: `local`, or the address of a cluster (`auto`, `host:6379`)."
    )
    parser.add_argument("--dry-run", action="store_true", help="Print the grid and an estimate, and run nothing.")
    check_keys(words[1:])
    parsed = parser.parse_args(words[1:])
    try:
        options: Any = parser.instantiate(parsed)
    except ValueError as error:
        raise StudyError(sentence_of(str(error))) from error
    settings = on_grid(options.settings or {}, options.grid)
    for label, setting in settings.items():
        _check_types(label, setting)
    study = Study(settings, options.arms, options.seeds, options.first_seed, options.block)
    study.check()
    if options.jobs < 1:
        raise StudyError(f"`--jobs` has to be at least 1, found {options.jobs}.")
    if options.ray not in (None, "local") and options.jobs > 1:
        raise StudyError(
            f"A Ray cluster has workers of its own: drop `--jobs {options.jobs}`, or give `--ray local` to start as "
            "many on this machine."
        )
    torch.set_num_threads(1)  # products this small gain nothing from threads; processes do
    folder = Path(options.output)
    if options.dry_run:
        _print_grid(study, options.jobs, console)
        return
    if options.ray is not None:
        check_ray(options.ray)
    study.prepare()
    results = Results(folder, name, study.config(), study.measures())
    rows = run_study(study, results, options.jobs, console, options.ray)
    runs = Runs(rows, study.arms, study.settings)
    written = write_report(runs, folder, f"Study {name.rpartition('.')[2]}", kind.findings(runs))
    failed = sum(row.status == "failed" for row in rows)
    console.print(written[0].read_text(), markup=False, soft_wrap=True)
    console.print(f"{len(rows)} runs, {failed} failed. Written: {', '.join(map(str, written))}", soft_wrap=True)


def _check_types(label: str, setting: Setting) -> None:
    """Check the values of a setting as those of the command line are; a grid may hold any."""
    parser = Parser()
    parser.add_argument("--setting", type=type(setting))
    try:
        parser.parse_object({"setting": asdict(setting)})
    except StudyError as error:
        raise StudyError(f"Setting {label!r} cannot be: {error}") from error


def _print_grid(study: Study, jobs: int, console: Console) -> None:
    table = Table("setting", "arms", "seeds", "runs", title="The grid")
    last = study.first_seed + study.seeds - 1
    for setting in study.settings:
        table.add_row(
            setting, ", ".join(study.arms), f"{study.first_seed} to {last}", str(len(study.arms) * study.seeds)
        )
    console.print(table)
    try:
        took = in_words(seconds_of(study.blocks(set())) / jobs)
    except (ValueError, OSError, RuntimeError) as error:
        estimate = f"no estimate ({' '.join(str(error).split()).rstrip('.')})"
    else:
        estimate = f"about {took} on {jobs} process{'es' if jobs > 1 else ''}"
    console.print(f"{len(study.cells())} runs, {estimate}; nothing was run.", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
