"""``fpe sweep --config CONFIG --sweep GRID``: try arguments of a run, in several processes at once.

Optuna's journal, one file, is the only state. Each process takes the next trial from it. A trial whose process is gone
is tried again, so a sweep that was killed goes on at the same command.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fpe_lightning.commands.sweep_plan import Plan
from fpe_lightning.commands.sweep_report import write_report
from fpe_lightning.commands.train import shipped
from fpe_lightning.extras import extra

with extra("sweep", "`fpe sweep`"):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

DIRECTIONS = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}


def main(words: list[str]) -> int | str:
    """Search arguments of a run, by a grid or by Optuna; start the command several times to share the work.

    Args:
        words: The words after ``fpe sweep``; those that it does not know go to ``fpe fit``.

    Returns:
        An exit code, or one sentence about a mistake.
    """
    parser = argparse.ArgumentParser(prog="fpe sweep", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("--config", action="append", required=True, help="a config of `fpe fit`; repeat it to stack")
    parser.add_argument("--sweep", required=True, help="parameters and their values, in YAML")
    parser.add_argument("--output", type=Path, help="folder of journal, runs and report; logs/sweeps/NAME by default")
    arguments, others = parser.parse_known_args(words)
    try:
        plan = Plan.read(Path(*shipped([arguments.sweep])))
    except ValueError as error:
        return f"error: {error}"
    fixed = [*(f"--config={path}" for path in shipped(arguments.config)), *others]
    sweep = Sweep(plan, arguments.output or Path("logs/sweeps") / plan.name, fixed)
    try:
        sweep.run()
    except Refused as error:
        return f"error: the run of {error} was refused; see above."
    return 0


class Refused(Exception):
    """A command line that `fpe fit` does not take: no other trial would be better."""


class Sweep:
    """The trials of a plan in one folder.

    Args:
        plan: What to try.
        folder: Where the journal, the runs and the report are.
        fixed: Words of ``fpe fit`` that all trials share.
    """

    def __init__(self, plan: Plan, folder: Path, fixed: list[str]) -> None:
        self.plan, self.folder, self.fixed = plan, folder, fixed
        (folder / "state").mkdir(parents=True, exist_ok=True)
        self.turn = FileLock(folder / "state/turn.lock")  # one process at a time asks for a trial
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = JournalStorage(JournalFileBackend(str(folder / "state/journal.log")))
        with self.turn:
            self.study = optuna.create_study(
                storage=storage, study_name=plan.name, direction=DIRECTIONS[plan.mode], load_if_exists=True
            )
            if not self.study.trials:
                for values in plan.grid():
                    self.study.enqueue_trial(values)

    def run(self) -> None:
        """Try until the plan is done, then write the report."""
        while (taken := self._take()) is not None:
            trial, lock = taken
            try:
                self._try(trial)
            finally:
                lock.release()
                write_report(self.study, self.plan, self.folder)
        write_report(self.study, self.plan, self.folder, say=True)

    def _take(self) -> tuple[optuna.Trial, FileLock] | None:
        """The next trial and the lock that says that its process lives; None if enough are done or under way."""
        with self.turn:
            trials = self.study.get_trials(deepcopy=False)
            for each in trials:
                if each.state is TrialState.RUNNING and self._lock(each.number) is not None:
                    self.study.tell(each.number, state=TrialState.FAIL)  # its process is gone
                    self.study.enqueue_trial(each.params)
            trials = self.study.get_trials(deepcopy=False)
            under_way = (TrialState.COMPLETE, TrialState.RUNNING)
            counted = [each for each in trials if each.state in under_way or "error" in each.user_attrs]
            if len(counted) >= self.plan.trials:
                return None
            # A sampler of its own for each trial: what it draws does not depend on who asks, or on a kill.
            self.study.sampler = self.plan.sampler(len(trials))
            trial = self.study.ask()
            self.plan.suggest(trial)
            lock = self._lock(trial.number, keep=True)
            assert lock is not None
            return trial, lock

    def _lock(self, number: int, keep: bool = False) -> FileLock | None:
        """The lock of a trial; None if another process holds it. It is released again, unless it is to be kept."""
        lock = FileLock(self._state(number, "lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if not keep:
            lock.release()
        return lock

    def _state(self, number: int, kind: str) -> Path:
        """A file about a trial; the run has a folder of its own."""
        return self.folder / "state" / f"trial_{number}.{kind}"

    def _try(self, trial: optuna.Trial) -> None:
        """Train with the values of a trial, and tell the study the best value of the metric."""
        words = [*self.fixed, f"--config={self._logger(trial.number)}", "--test_after_fit=false"]
        words += [f"--{key}={value}" for key, value in trial.params.items()]
        try:
            value = fit(words, self.plan.monitor)
        except SystemExit as stop:
            trial.set_user_attr("error", "refused")
            self.study.tell(trial, state=TrialState.FAIL)
            raise Refused(trial.params) from stop
        except Exception as error:  # a run that fails, such as one without memory, is a result
            print(f"trial {trial.number} failed: {error}", file=sys.stderr)
            value = math.nan
            trial.set_user_attr("error", str(error))
        if math.isfinite(value):
            self.study.tell(trial, value)
            return
        if "error" not in trial.user_attrs:
            trial.set_user_attr("error", f"{self.plan.monitor} is {value}")
        self.study.tell(trial, state=TrialState.FAIL)

    def _logger(self, number: int) -> Path:
        """A config whose logger writes into the folder of the trial."""
        logger = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(self.folder), "name": "", "version": f"trial_{number}"},
        }
        path = self._state(number, "yaml")
        path.write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
        return path


def fit(words: list[str], monitor: str) -> float:
    """Train, and return the best value of a metric, or its last one where no checkpoint follows it.

    Raises:
        ValueError: If the run logs no such metric.
    """
    from lightning.pytorch.callbacks import ModelCheckpoint

    from fpe_lightning.cli import CLI

    sys.argv[1:] = ["fit", *words]
    trainer = CLI().trainer
    logged: Any = trainer.callback_metrics.get(monitor)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor == monitor:
            logged = callback.best_model_score
    if logged is None:
        raise ValueError(f"the run logs no {monitor!r}; it logs {', '.join(sorted(trainer.callback_metrics))}.")
    return float(logged)
