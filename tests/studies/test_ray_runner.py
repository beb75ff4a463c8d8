"""A study on Ray: every cell is there once, also where workers die."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from studies import ray_runner
from studies.boolean import Regime
from studies.errors import StudyError
from studies.results import Results, Row
from studies.runner import run_study
from studies.setting import Setting
from studies.study import Study
from studies.task import Task
from studies.workers import in_turn
from tests.support.arms import arms

SETTINGS = {
    "S": Regime(epochs=6, split=2, samples=32),
    "T": Regime(epochs=6, split=3, switch=3, lr_after=0.01, samples=32),
}
ARMS = arms("dense", "random", "wide_sparse")


def study(settings: dict[str, Setting]) -> Study:
    return Study(settings, ARMS, seeds=3, block=1)


def alike(rows: list[Row]) -> list[Row]:
    """Rows without what may differ: how long a run took, and that of a setting which kills its worker."""
    return [replace(row, seconds=0.0, config="") for row in rows]


@pytest.fixture
def plain(tmp_path: Path) -> list[Row]:
    """The rows of a run on this process."""
    return run_study(study(SETTINGS), Results(tmp_path / "plain", "boolean", {}))


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    """A Ray of this machine with two workers."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray_runner._begin(ray, "local", 2)
    yield ray
    ray.shutdown()


def deadly(setting: Regime, mark: Path, seed: int, once: bool = True) -> Setting:
    """The setting, but one seed kills its process with its parents trained and its children not yet."""

    # Classes of a function travel to the workers by value; this module they could not import.
    @dataclass(frozen=True)
    class Deadly(Task):
        @property
        def loss(self) -> Any:
            reads = vars(self).setdefault("reads", [])
            reads.append(1)
            if len(reads) == 2 and not (once and mark.exists()):
                with mark.open("a") as file:
                    print(os.getpid(), file=file)
                os.kill(os.getpid(), 9)
            return Task.loss.fget(self)  # type: ignore[attr-defined]

    @dataclass(frozen=True)
    class Killing(Regime):
        def task(self, drawn: int) -> Task:
            found = Regime.task(self, drawn)
            return Deadly(**vars(found)) if drawn == seed else found

    return Killing(**vars(setting))


@pytest.mark.slow
def test_every_cell_is_there_once_though_a_worker_was_killed_half_way(
    two_workers: Any, plain: list[Row], tmp_path: Path
) -> None:
    mark = tmp_path / "killed"
    results = Results(tmp_path / "ray", "boolean", {})
    rows = run_study(study({**SETTINGS, "T": deadly(SETTINGS["T"], mark, seed=1)}), results, ray="local")
    (killed,) = map(int, mark.read_text().split())
    assert killed != os.getpid()
    assert alike(rows) == alike(plain)  # to the last digit
    written = [row.cell for row in results.rows()]
    assert len(written) == len(set(written)) == 18
    assert two_workers.cluster_resources()["CPU"] == 2


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on(two_workers: Any, plain: list[Row], tmp_path: Path) -> None:
    results = Results(tmp_path / "ray", "boolean", {})
    results.append(plain[:7])
    assert alike(run_study(study(SETTINGS), results, ray="local")) == alike(plain)
    assert results.rows()[:7] == plain[:7]
    assert len(results.rows()) == 18


@pytest.mark.slow
def test_a_block_that_kills_every_worker_is_named_and_the_rest_is_done(
    two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_runner, "RETRIES", 1)
    mark = tmp_path / "killed"
    results = Results(tmp_path / "ray", "boolean", {})
    sentence = r"^3 runs are missing, as all 2 workers that tried setting 'T', seeds 1 to 1, died \(WorkerCrashedError"
    with pytest.raises(StudyError, match=sentence):
        run_study(study({**SETTINGS, "T": deadly(SETTINGS["T"], mark, seed=1, once=False)}), results, ray="local")
    assert len(mark.read_text().split()) == 2
    assert len(results.rows()) == 15


@pytest.mark.slow
def test_rows_of_another_version_are_refused(two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runner, "__version__", "9.9")
    results = Results(tmp_path, "boolean", {})
    with pytest.raises(StudyError, match=r"A worker of the cluster has fpe_lightning .*, this process 9\.9; install"):
        run_study(study(SETTINGS), results, ray="local")
    assert results.rows() == []


def test_a_cluster_that_is_not_there_gets_one_sentence() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(StudyError, match=r"^No Ray could be had at 'ray://127\.0\.0\.1:1': [^\n]*refused\.$"):
        next(ray_runner.on_ray([], print, "ray://127.0.0.1:1", 1))


def test_without_ray_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"^`--ray` needs Ray, which is not installed: `pip install "):
        next(ray_runner.on_ray([], print, "local", 1))


def test_the_deadly_setting_of_these_tests_dies_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parents are trained by then, and its children are not: what was told of the progress says so."""
    monkeypatch.setattr(os, "kill", lambda pid, signal: (_ for _ in ()).throw(InterruptedError))
    told: list[int] = []
    blocks = study({"T": deadly(SETTINGS["T"], tmp_path / "killed", seed=0)}).blocks(set())[:1]
    with pytest.raises(InterruptedError):
        list(in_turn(blocks, lambda advance=0, description="": told.append(advance)))
    assert 0 < sum(told) < blocks[0].work
