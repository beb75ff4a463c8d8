"""Run what is left of a study, with a progress bar, on one process or several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fpe_lightning.studies.results import Results, Row
from fpe_lightning.studies.study import Block, Study
from fpe_lightning.studies.training import run_block


def run_study(study: Study, results: Results, jobs: int = 1, console: Console | None = None) -> list[Row]:
    """Run the cells that the folder lacks, and return the rows of the whole grid in its order.

    Args:
        study: What to run.
        results: Where finished rows are and new ones go, block by block.
        jobs: Processes. The results do not depend on it.
        console: Where the progress bar is drawn.

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

        def finish(block: Block, rows: list[Row]) -> None:
            results.append(rows)
            progress.update(runs, advance=block.cells)

        if jobs == 1:
            for block in blocks:
                progress.update(work, description=f"setting {block.name}")
                finish(block, _rows(block, lambda count: progress.update(work, advance=count)))
        else:
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _single_threaded) as pool:
                submitted = {pool.submit(_rows, block): block for block in blocks}
                for future in as_completed(submitted):
                    finish(submitted[future], future.result())
                    progress.update(work, advance=submitted[future].work)
    by_cell = {row.cell: row for row in results.rows()}
    return [by_cell[cell] for cell in cells]


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _rows(block: Block, advance: Callable[[int], None] | None = None) -> list[Row]:
    found = run_block(block.setting, block.arms, block.seeds, advance)
    return [replace(row, setting=block.name) for row in found]
