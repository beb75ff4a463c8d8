"""Run the blocks of a study in this process, or in several processes of this machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace

import torch

from fpe_lightning import __version__
from studies.errors import StudyError
from studies.results import Row, described
from studies.study import Block
from studies.training import run_block

Finished = Generator[tuple[Block, list[Row]], None, None]
"""Blocks and their rows, in the order in which they are finished."""
Tell = Callable[..., None]
"""Takes ``advance=``, finished epochs times networks, and ``description=``, the setting at work."""


def rows_of(block: Block, advance: Callable[[int], None] | None = None) -> list[Row]:
    """Run a block; its rows hold their config and the versions that made them.

    Args:
        block: The block.
        advance: Called with finished epochs times networks.

    Returns:
        A row for each arm and seed.
    """
    configs = {
        name: json.dumps({"setting": asdict(block.setting), "arm": described(arm)}, default=str)
        for name, arm in block.arms.items()
    }
    found = run_block(block.setting, block.arms, block.seeds, advance)
    torch_version = str(torch.__version__)
    return [
        replace(row, setting=block.name, version=__version__, torch=torch_version, config=configs[row.arm])
        for row in found
    ]


def in_turn(blocks: Sequence[Block], tell: Tell) -> Finished:
    """Run one block after the other in this process."""
    for block in blocks:
        tell(description=f"setting {block.name}")
        yield block, rows_of(block, lambda count: tell(advance=count))


def on_processes(blocks: Sequence[Block], tell: Tell, jobs: int) -> Finished:
    """Run blocks on several processes of this machine, which end when this one does, however it ends.

    Raises:
        StudyError: If a process was killed; the rows of the other processes come first.
    """
    before = multiprocessing.active_children()
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)
    lost = 0
    try:
        submitted = {pool.submit(rows_of, block): block for block in blocks}
        for future in as_completed(submitted):
            if isinstance(future.exception(), BrokenProcessPool):
                lost += submitted[future].cells
                continue
            tell(advance=submitted[future].work)
            yield submitted[future], future.result()
    except BaseException:
        # Nobody will read the rows of the blocks at work, and a block may take minutes.
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    if lost:
        raise StudyError(
            f"A process was killed (for lack of memory, perhaps) with {lost} runs to go; "
            "the same command goes on from those that are finished."
        )


def _begin() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt from the keyboard reaches every process: end at once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent was killed: a killed process ends no other one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
