"""Processes of a study end with it, and lose nothing that is finished."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from studies.__main__ import main
from studies.boolean import Regime
from studies.errors import StudyError
from studies.results import Results
from studies.runner import run_study
from studies.study import Study
from studies.task import Task
from tests.support.arms import arms


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        found = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return sorted(found, key=lambda row: (row["setting"], row["arm"], row["seed"]))


def words(config: Path, folder: Path) -> list[str]:
    return ["boolean", "--config", str(config), "--output", str(folder)]


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the children of a process from /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_study_that_is_killed_leaves_no_process_and_goes_on(how: signal.Signals, tiny: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.yaml"
    long.write_text(tiny.read_text().replace("epochs: 6", "epochs: 300").replace("block: 2", "block: 1"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(words(long, whole)) == 0

    command = [sys.executable, "-m", "studies", *words(long, broken), "--jobs", "2"]
    # What a shell starts in the background ignores interrupts, and so would its children.
    first = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    wait_for(lambda: (broken / "results.csv").exists())
    workers = children(first.pid)
    first.send_signal(how)
    assert first.wait() in (-signal.SIGKILL, 130)
    assert len(workers) >= 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert 0 < len(rows(broken)) <= 18

    assert main(words(long, broken)) == 0
    assert rows(broken) == rows(whole)


@dataclass(frozen=True)
class Killing(Regime):
    """Kills the process that runs seed 1."""

    def task(self, seed: int) -> Task:
        if seed == 1:
            os.kill(os.getpid(), 9)
        return super().task(seed)


@pytest.mark.slow
def test_a_killed_process_gets_one_sentence_after_what_is_finished(tmp_path: Path) -> None:
    results = Results(tmp_path, "boolean", {})
    settings = {"S": Killing(epochs=4, split=2, samples=32)}
    with pytest.raises(StudyError, match=r"A process was killed \(for lack of memory, perhaps\) with \d+ runs to"):
        run_study(Study(settings, arms("dense"), seeds=4, block=1), results, jobs=2)
    assert 1 not in {row.seed for row in results.rows()}
    assert multiprocessing.active_children() == []
