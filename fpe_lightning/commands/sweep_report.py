"""The report of a sweep: a table, the best config, and a figure."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fpe_lightning.commands.sweep_plan import Plan

if TYPE_CHECKING:
    import optuna


def write_report(study: optuna.Study, plan: Plan, folder: Path, say: bool = False) -> None:
    """Write ``trials.csv``, ``best.yaml`` and ``sweep.png``; each file is replaced as a whole.

    Args:
        study: The study.
        plan: Its plan.
        folder: The folder of the sweep.
        say: Whether to print the table and the paths too.
    """
    sign = -1 if plan.mode == "max" else 1
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    done.sort(key=lambda trial: (sign * (trial.value or 0), trial.number))
    rows: list[list[Any]] = [["trial", plan.monitor, *plan.parameters]]
    rows += [[trial.number, trial.value, *(trial.params.get(key, "") for key in plan.parameters)] for trial in done]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _replace(folder / "trials.csv", text.getvalue().encode())
    if not done:
        if say:
            print(f"No trial of {plan.name} has a value; the errors are above.")
        return
    _replace(folder / "best.yaml", best_config(folder / f"trial_{done[0].number}/config.yaml").encode())
    picture = io.BytesIO()
    figure(plan, done).savefig(picture, format="png", dpi=120)
    _replace(folder / "sweep.png", picture.getvalue())
    if say:
        _say(plan, rows, folder)


def best_config(path: Path) -> str:
    """The config of a trial, to be trained again: its test follows, and its logs get a folder of their own."""
    config = yaml.safe_load(path.read_text())
    config["test_after_fit"] = True
    config["trainer"]["logger"]["init_args"].update(name="best", version=None)
    return yaml.safe_dump(config, sort_keys=False)


def figure(plan: Plan, done: list[Any]) -> Figure:
    """The metric against each parameter, one panel each."""
    keys = list(plan.parameters)
    drawn = Figure(figsize=(3.2 * len(keys), 3), layout="constrained")
    panels = drawn.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        points = [(trial.params[key], trial.value) for trial in done if key in trial.params]
        if "values" in plan.parameters[key]:
            ticks = [str(value) for value in plan.parameters[key]["values"]]
            panel.set_xticks(range(len(ticks)), ticks)
            points = [(ticks.index(str(value)), result) for value, result in points]
        elif plan.parameters[key].get("log"):
            panel.set_xscale("log")
        panel.plot(*zip(*points, strict=True), "o", alpha=0.6, markersize=5)
        panel.set_xlabel(key.rpartition(".")[2])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(plan.monitor)
    return drawn


def _say(plan: Plan, rows: list[list[Any]], folder: Path, shown: int = 20) -> None:
    table = Table(title=f"{plan.name}: {len(rows) - 1} trials, best first")
    for name in rows[0]:
        table.add_column(str(name).rpartition(".")[2], justify="right")
    for row in rows[1 : shown + 1]:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)
    print(f"table: {folder / 'trials.csv'}\nfigure: {folder / 'sweep.png'}")
    print(f"best config: fpe fit --config {folder / 'best.yaml'}")


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
