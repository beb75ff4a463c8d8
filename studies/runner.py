"""Run the rest of a study, with a progress bar."""

from __future__ import annotations

from contextlib import closing
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from studies.ray_runner import on_ray
from studies.results import Results, Row
from studies.study import Study
from studies.workers import in_turn, on_processes


def run_study(
    study: Study, results: Results, jobs: int = 1, console: Console | None = None, ray: str | None = None
) -> list[Row]:
    """Run the cells that the folder lacks, and return the rows of the whole grid in its order.

    Args:
        study: The study.
        results: The folder of finished rows, which takes new ones block by block; this process alone writes them.
        jobs: Processes. The results do not depend on it.
        console: The console of the progress bar.
        ray: Run on Ray: see :func:`~studies.ray_runner.on_ray`.

    Returns:
        A row for each cell.
    """
    blocks = study.blocks({row.cell for row in results.rows()})
    cells = study.cells()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("runs"),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    ) as progress:
        done = len(cells) - sum(block.cells for block in blocks)
        total = sum(block.work for block in blocks)
        work = progress.add_task("training", total=max(total, 1), completed=0 if total else 1)
        # The bar's own count is of epochs; the column of runs reads this task.
        runs = progress.add_task("finished", total=len(cells), completed=done)
        tell = partial(progress.update, work)
        if ray is not None and blocks:
            finished = on_ray(blocks, tell, ray, jobs)
        else:
            finished = in_turn(blocks, tell) if jobs == 1 else on_processes(blocks, tell, jobs)
        with closing(finished):
            for block, rows in finished:
                results.append(rows)
                progress.update(runs, advance=block.cells)
    by_cell = {row.cell: row for row in results.rows()}
    return [by_cell[cell] for cell in cells]
