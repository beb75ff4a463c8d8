"""Run the blocks of a study on a Ray cluster, for grids that outgrow one machine."""

from __future__ import annotations

import importlib
import os
import re
import socket
from collections.abc import Sequence
from typing import Any

import torch

from fpe_lightning import __version__
from studies.errors import StudyError
from studies.results import Row
from studies.study import Block
from studies.workers import Finished, Tell, rows_of

RETRIES = 3
"""How often a block starts again after its worker died."""
STARTS = 3
"""How often a start of Ray on this machine is tried: it waits 15 s for its processes, too short on a busy machine."""


def check_ray(address: str) -> None:
    """Check that Ray is installed, and that something answers where an address names a machine and a port.

    Raises:
        StudyError: If not.
    """
    try:
        importlib.import_module("ray")
    except ImportError as error:
        raise StudyError('`--ray` needs Ray, which is not installed: `pip install "fpe_lightning[ray]"`.') from error
    # Ray itself would try for minutes.
    if found := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise StudyError(f"No Ray could be had at {address!r}: {error}.") from error


def on_ray(blocks: Sequence[Block], tell: Tell, address: str, jobs: int) -> Finished:
    """Run blocks on Ray, one to a CPU; a block whose worker dies starts again on another.

    Workers of a cluster need this package in the same version, and data at the same paths. A Ray that this process
    has started already is used as it is.

    Args:
        blocks: The blocks.
        tell: Takes the progress.
        address: ``"local"`` starts a Ray on this machine and stops it afterwards; else that of a cluster, such as
            ``"auto"`` (the one that runs on this machine) or ``"10.0.0.1:6379"``.
        jobs: Workers of a local one; a cluster has its own.

    Raises:
        StudyError: If Ray is not installed or cannot be had, a worker has another version of this package, or a block
            has lost all its workers; the rows of the other blocks come first.
    """
    check_ray(address)
    ray: Any = importlib.import_module("ray")
    begun = not ray.is_initialized()
    if begun:
        _begin(ray, address, jobs)
    try:
        yield from _finished(ray, blocks, tell)
    finally:
        if begun:
            ray.shutdown()


def _finished(ray: Any, blocks: Sequence[Block], tell: Tell) -> Finished:
    run = ray.remote(num_cpus=1, max_retries=RETRIES)(_rows)
    waiting = {run.remote(block): block for block in blocks}
    lost: list[tuple[Block, Exception]] = []
    while waiting:
        (reference,), _ = ray.wait(list(waiting))
        block = waiting.pop(reference)
        try:
            rows = ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # the block itself failed, and would on any worker
        except ray.exceptions.RayError as error:
            lost.append((block, error))
            continue
        if others := {row.version for row in rows} - {__version__}:
            raise StudyError(
                f"A worker of the cluster has fpe_lightning {others.pop()}, this process {__version__}; "
                "install the same version on every machine."
            )
        tell(advance=block.work)
        yield block, rows
    if lost:
        block, why = lost[0]
        raise StudyError(
            f"{sum(each.cells for each, _ in lost)} runs are missing, as all {RETRIES + 1} workers that tried setting "
            f"{block.name!r}, seeds {block.seeds[0]} to {block.seeds[-1]}, died ({type(why).__name__}); "
            "find out why (memory, perhaps), and give the same command again."
        )


def _rows(block: Block) -> list[Row]:
    torch.set_num_threads(1)
    return rows_of(block)


def _begin(ray: Any, address: str, jobs: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    # Rows are small: the object store needs no more than Ray insists on. Nothing is sent anywhere.
    local = {"num_cpus": jobs, "num_gpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for left in reversed(range(STARTS if address == "local" else 1)):
        try:
            ray.init(address=address, **quiet, **(local if address == "local" else {}))
            return
        except Exception as error:  # Ray raises plain Exceptions here
            ray.shutdown()
            if not left:
                why = " ".join(str(error).split()).rstrip(".")
                raise StudyError(f"No Ray could be had at {address!r}: {why}.") from error
