"""Run a worker in two gloo processes and compare what they end with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


@contextmanager
def joined(rank: int, port: int) -> Iterator[None]:
    """The process group of both processes."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    yield
    dist.barrier()  # neither leaves while the other still listens to it
    dist.destroy_process_group()


def states_of_both(worker: Callable[..., None], folder: Path, *args: Any) -> list[dict[str, torch.Tensor]]:
    """Call ``worker(rank, port, folder, *args)`` in each, and load the ``<rank>.pt`` that each leaves there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder), *args), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
