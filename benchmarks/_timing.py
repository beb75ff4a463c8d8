"""Time several implementations of the same work, so that they compare fairly on a busy machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Wall time, and CPU time, which is steadier on a busy machine with one thread."""

FIGURES: dict[str, Callable[[list[float]], float]] = {"median": median, "least": min}
"""What is said of the rounds of an arm."""


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    seconds: float,
    at_least: int = 7,
    label: str = "",
    clock: str = "wall",
    figure: str = "median",
) -> dict[str, float]:
    """The median (or least) seconds of each arm; arms take turns, so that a disturbance affects all of them.

    Args:
        arms: Functions to time, by name. Each is called twice before the clock starts.
        seconds: Approximate total time.
        at_least: Least number of rounds.
        label: Label of the progress bar.
        clock: ``"wall"``, or ``"cpu"`` for the CPU time of this process on a busy machine (the times of several threads
            add up).
        figure: ``"median"`` of the rounds, or ``"least"`` where other work disturbs many of them.

    Returns:
        That figure, by name.
    """
    cuda = torch.cuda.is_available()
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in arms}
    for run in (*arms.values(), *arms.values()):
        run()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(label, total=seconds)
        begin = time.perf_counter()
        while len(next(iter(times.values()))) < at_least or time.perf_counter() - begin < seconds:
            for name, run in arms.items():
                if cuda:
                    torch.cuda.synchronize()
                start = now()
                run()
                if cuda:
                    torch.cuda.synchronize()
                times[name].append(now() - start)
            progress.update(task, completed=min(time.perf_counter() - begin, seconds))
    return {name: FIGURES[figure](found) for name, found in times.items()}


def machine(device: torch.device) -> str:
    """One line about the machine that produced the figures."""
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"{torch.cuda.get_device_name(device)} (compute capability {capability}), torch {torch.__version__}"
    return (
        f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
