"""Training in bfloat16 under DDP, one process for each GPU (two on a CPU): a 2:4 probe and a 2:4 FFN."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fpe_lightning as fpe
from benchmarks.gpu_day.rows import REFUSED, Row, kernel_on, reason_of

MOST_SECONDS = 120


@dataclass(frozen=True)
class Task:
    """A small training run.

    Attributes:
        name: Its name in the report.
        sizes: Inputs, hidden neurons and outputs.
        rows: Rows of a batch of one process.
        steps: Training steps.
    """

    name: str
    sizes: tuple[int, int, int]
    rows: int
    steps: int


LARGE = (Task("probe", (512, 256, 128), 2048, 60), Task("FFN", (768, 3072, 768), 4096, 40))
SMALL = (Task("probe", (64, 64, 16), 32, 6), Task("FFN", (64, 128, 64), 32, 6))


def training(device: torch.device, small: bool) -> list[Row]:
    """Train every task on all GPUs, or in two processes on a CPU."""
    world = torch.cuda.device_count() if device.type == "cuda" else 2
    tasks = SMALL if small else LARGE
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        given = (world, device.type, tasks, str(Path(folder, "meeting")), sender)
        workers = [context.Process(target=_worker, args=(rank, *given), daemon=True) for rank in range(world)]
        for worker in workers:
            worker.start()
        sender.close()
        notes = _notes(receiver)
        for worker in workers:
            worker.join(5)
            if worker.is_alive():
                worker.terminate()
    kernel, status = kernel_on(device)
    rows = []
    for task in tasks:
        passed, note = notes.get(task.name, (False, f"no answer within {MOST_SECONDS} s, or the process died"))
        what = f"2:4 {task.name}, bf16, {world} processes"
        rows.append(Row("DDP", what, kernel, status if passed else REFUSED, note))
    return rows


def _notes(receiver: Any) -> dict[str, tuple[bool, str]]:
    """What the processes say about each task; a failure of any of them counts."""
    notes: dict[str, tuple[bool, str]] = {}
    try:
        while receiver.poll(MOST_SECONDS):
            name, passed, note = receiver.recv()
            if notes.get(name, (True, ""))[0]:
                notes[name] = (passed, note)
    except EOFError:  # all processes are done
        pass
    return notes


def _worker(rank: int, world: int, kind: str, tasks: tuple[Task, ...], meeting: str, sender: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo") if kind == "cpu" else None
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    for task in tasks:
        try:
            note = _train(task, device, rank, world)
            if rank == 0:
                sender.send((task.name, True, note))
        except Exception as error:  # a kernel may raise anything
            sender.send((task.name, False, f"rank {rank}: {reason_of(error)}"))
            break  # the other processes wait for this one, and are ended with it
    else:
        dist.barrier()
        dist.destroy_process_group()


def _train(task: Task, device: torch.device, rank: int, world: int) -> str:
    torch.manual_seed(0)
    inputs, hidden, outputs = task.sizes
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).to(device)
    teacher = torch.randn(inputs, outputs, device=device)
    expansion = fpe.SemiStructured(prune="incoming", outgoing="partition" if task.name == "FFN" else "copy")
    report = fpe.expand(model, expansion, example_inputs=torch.zeros(1, inputs, device=device))
    before = fpe.count_nonzeros(model)
    parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    generator = torch.Generator(device).manual_seed(1 + rank)
    # One batch for each process: a few steps have to learn it by heart.
    x = torch.randn(task.rows, inputs, device=device, generator=generator)
    losses = []
    for _ in range(task.steps):
        with torch.autocast(device.type, torch.bfloat16):
            found: Tensor = parallel(x)
        loss = F.cross_entropy(found.float(), (x @ teacher).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    # All ranks have to end with the same weights, bit by bit, and with as many non-zeros as the dense parent.
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    first = flat.clone()
    dist.broadcast(first, 0)
    if not torch.equal(flat, first):
        raise ArithmeticError(f"rank {rank} differs from rank 0 by {float((flat - first).abs().max()):.1e}")
    if not fpe.count_nonzeros(model) == before == report.nonzeros_before:
        raise ArithmeticError(f"{report.nonzeros_before} non-zeros became {fpe.count_nonzeros(model)}")
    if not losses[-1] < losses[0]:
        raise ArithmeticError(f"the loss does not fall: {losses[0]:.3f} to {losses[-1]:.3f}")
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {task.steps} steps; ranks equal; {before} non-zeros throughout"
