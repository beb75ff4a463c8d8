"""Train public projects without and with a split, load and resume them, and print a table.

python -m benchmarks.field                                  all that is installed
python -m benchmarks.field --projects accelerate,chemprop   some; a name ending in a slash or a glob stands for several
python -m benchmarks.field --page docs/results/field.md     also write the page

Nothing is installed and nothing is downloaded; `pip install "fpe_lightning[field]"` brings the projects. The command
ends with 1 if a project of the list that is installed fails.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.field import adapters, forecasts, loops, science, trainers, transformers_types, vision
from benchmarks.field.page import page, rows_table
from benchmarks.field.project import Project, examine
from benchmarks.field.row import Row

FAMILIES = (trainers, vision, loops, science, forecasts, adapters, transformers_types)
PROJECTS: tuple[Callable[[], Project], ...] = tuple(make for family in FAMILIES for make in family.PROJECTS)


def chosen(patterns: str) -> list[Project]:
    """The projects that a comma-separated list of names and globs stands for.

    Args:
        patterns: Such as ``"accelerate,peft/*"``; empty for all.

    Returns:
        Projects in the order of the table.

    Raises:
        SystemExit: If a name stands for none.

    Example:
        >>> [project.name for project in chosen("accelerate,pytorch_lightning")]
        ['pytorch_lightning', 'accelerate']
    """
    projects = [make() for make in PROJECTS]
    wanted = [f"{each}*" if each.endswith("/") else each for each in patterns.split(",") if each]
    for each in wanted:
        if not any(fnmatch(project.name, each) for project in projects):
            names = ", ".join(sorted({project.name.partition("/")[0] for project in projects}))
            raise SystemExit(f"--projects: {each!r} is none of {names}.")
    return [project for project in projects if not wanted or any(fnmatch(project.name, each) for each in wanted)]


def run(projects: Sequence[Project], console: Console) -> list[Row]:
    """Examine projects one after the other, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rows = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(projects))
        for project in projects:
            progress.update(task, description=project.name)
            rows.append(examine(project))
            progress.advance(task)
    return rows


def quiet() -> None:
    """Projects talk a lot; the table says what matters."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from transformers.utils import logging as talk
    except ImportError:
        return
    talk.set_verbosity_error()
    talk.disable_progress_bar()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--projects", default="", help="names or globs, separated by commas; default: all")
    parser.add_argument("--page", type=Path, help="a Markdown file to write")
    arguments = parser.parse_args()
    quiet()
    console = Console()
    rows = run(chosen(arguments.projects), console)
    wide = Console(width=max(160, console.width))
    wide.print(rows_table(rows))
    for row in rows:
        if row.note:
            wide.print(f"{row.project}: {row.note}", markup=False, highlight=False)
    if arguments.page is not None:
        words = f" --projects {arguments.projects}" if arguments.projects else ""
        arguments.page.write_text(page(rows, f"python -m benchmarks.field{words}"))
    failed = [row.project for row in rows if not row.ok]
    if failed:
        console.print(f"failed: {', '.join(failed)}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
