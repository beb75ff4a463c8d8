"""``fpe sweep`` tries each point once, by any number of processes, goes on after a kill, and reports."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fpe_lightning.commands.main import main
from fpe_lightning.commands.sweep import Sweep
from fpe_lightning.commands.sweep_plan import Plan

ROOT = Path(__file__).parent.parent.parent
HIDDEN = "model.init_args.network.init_args.hidden"
GRID = {
    "sampler": "grid",
    "parameters": {HIDDEN: {"values": [4, 8]}, "trainer.callbacks.expansion.alpha": {"values": [2, 3]}},
}


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_shipped_sweep_is_a_plan() -> None:
    plan = Plan.read(ROOT / "configs/sweeps/width_alpha_lr.yaml")
    assert (plan.name, plan.how, len(plan.parameters)) == ("width_alpha_lr", "tpe", 3)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ({}, "has no `parameters`"),
        ({"parameters": {"a": {"values": []}}}, "`a` takes `values: [...]`"),
        ({"parameters": {"a": {"low": 2, "high": 1}}}, "`a` takes `values: [...]`"),
        ({"parameters": {"a": {"low": 1, "high": 2}}, "sampler": "grid"}, "a grid needs `values: [...]`"),
        ({"parameters": {"a": {"values": [1]}}, "trails": 3}, "has the unknown key `trails`"),
        ({"parameters": {"a": {"values": [1]}}, "trials": 0}, "`trials` is a whole number, found 0"),
        ({"parameters": {"a": {"values": [1]}}, "mode": "most"}, "`mode` is one of max, min, found 'most'"),
    ],
)
def test_a_mistake_in_a_plan_is_one_sentence(
    plan: dict[str, Any], sentence: str, write_config: Callable[..., Path]
) -> None:
    answer = main(["sweep", "--config", "any.yaml", "--sweep", str(write_config("plan", plan))])
    assert isinstance(answer, str)
    assert answer.startswith("error: ")
    assert sentence in answer


def test_every_point_of_a_grid_is_tried_once_and_reported(
    tiny_config: Path, write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "--config", str(tiny_config), "--sweep", str(write_config("grid", GRID)), "--output"]
    assert main([*words, str(tmp_path / "out"), "--trainer.max_epochs=2"]) == 0
    rows = trials(tmp_path / "out")
    assert sorted((row[HIDDEN], row["trainer.callbacks.expansion.alpha"]) for row in rows) == [
        *(("4", "2"), ("4", "3"), ("8", "2"), ("8", "3"))
    ]
    best = yaml.safe_load((tmp_path / "out/best.yaml").read_text())
    assert str(best["model"]["init_args"]["network"]["init_args"]["hidden"]) == rows[0][HIDDEN]
    assert best["test_after_fit"]
    assert (tmp_path / "out/sweep.png").stat().st_size > 1000
    assert "best config: fpe fit --config" in capsys.readouterr().out
    # The same command again finds nothing to do.
    assert main([*words, str(tmp_path / "out"), "--trainer.max_epochs=2"]) == 0
    assert len(trials(tmp_path / "out")) == 4


def test_a_trial_whose_process_is_gone_is_tried_again_and_one_that_runs_is_not(tmp_path: Path) -> None:
    plan = Plan("p", {"a": {"values": [1, 2]}}, how="grid", trials=2)
    gone, alive = Sweep(plan, tmp_path, []), Sweep(plan, tmp_path, [])
    taken = gone._take()
    assert taken is not None
    first, lock = taken
    other = alive._take()
    assert other is not None
    assert (first.params, other[0].params) == ({"a": 1}, {"a": 2})
    assert alive._take() is None  # both run
    lock.release()  # as the system does for a process that was killed
    again = alive._take()
    assert again is not None
    assert again[0].params == {"a": 1}
    assert alive._take() is None


def test_draws_do_not_depend_on_who_asks(tmp_path: Path) -> None:
    plan = Plan("p", {"a": {"low": 0.001, "high": 1.0, "log": True}}, how="random", trials=4)

    def drawn(folder: Path, processes: int) -> list[float]:
        sweeps = [Sweep(plan, folder, []) for _ in range(processes)]
        found = [sweeps[number % processes]._take() for number in range(4)]
        return [taken[0].params["a"] for taken in found if taken is not None]

    assert drawn(tmp_path / "one", 1) == drawn(tmp_path / "two", 2)


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_it_goes_on_after_a_kill(
    tiny_config: Path, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    plan, out = write_config("grid", GRID), tmp_path / "out"
    words = [sys.executable, "-m", "fpe_lightning.commands.main", "sweep", f"--config={tiny_config}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([*words, f"--sweep={plan}", f"--output={out}"], env=environment, cwd=tmp_path)

    killed = start()
    while not (out / "state/trial_1.lock").exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    both = [start(), start()]
    assert [process.wait() for process in both] == [0, 0]
    assert (
        len({(row[HIDDEN], row["trainer.callbacks.expansion.alpha"]) for row in trials(out)}) == len(trials(out)) == 4
    )
