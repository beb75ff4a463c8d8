"""The command that tries public projects: one project from end to end, its choice of projects, and its page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.field import __main__ as field
from benchmarks.field.page import page, rows_table
from benchmarks.field.project import Project, examine, load_plain, same, true_nonzeros
from benchmarks.field.row import Row
from benchmarks.field.trainers import HydraTemplate

GOOD = Row("a", "b 1.0", "yes", "1 of 2", 10, 10, 9, 10, "yes", "yes", "bit-identical")


def test_a_project_from_end_to_end() -> None:
    row = examine(HydraTemplate())
    assert row.ok, row
    assert (row.split, row.plain, row.loader, row.resumes) == ("2 of 3", "yes", "yes", "bit-identical")
    assert row.before == row.after == row.end == row.counted
    assert "it reaches an output of the model" in row.note


class Broken(HydraTemplate):
    """A loader that gives another module, and a run that grows."""

    name = "broken"

    def load(self, folder: Path) -> nn.Module:
        torch.manual_seed(7)
        return super().build()

    def train(self, folder: Path, epochs: int, callbacks: Any, resume: Path | None = None) -> nn.Module:
        module = super().train(folder, epochs, callbacks, resume)
        module.net.model[0].weight.data.fill_(1.0)  # type: ignore[union-attr]
        return module


def test_faults_of_a_project_are_in_its_row() -> None:
    row = examine(Broken())
    assert row.loader.startswith("no: outputs differ")
    assert row.before is not None
    assert row.end is not None
    assert row.end > row.before
    assert row.kept == "no, told"
    assert "masked entries of `net.model.0.weight` are not zero" in row.note
    assert not row.ok


class Missing(Project):
    """Needs a package that nobody has."""

    name, packages = "missing", ("fpe-lightning-needs-this-and-nobody-has-it",)


class Raises(Project):
    """Does not train."""

    name = "raises"

    def train(self, *_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("no data\nsecond line")


def test_projects_that_do_not_run() -> None:
    assert examine(Missing()).ran == "not installed"
    assert examine(Missing()).ok
    assert examine(Raises()).ran == "no: RuntimeError: no data"
    assert not examine(Raises()).ok


@pytest.mark.parametrize(
    "change",
    [{"end": 11}, {"after": 11}, {"plain": "no: x"}, {"loader": "no: x"}, {"resumes": "differs"}, {"split": "error"}],
)
def test_a_row_with_one_fault_is_not_ok(change: dict[str, Any]) -> None:
    assert GOOD.ok
    assert not dataclasses.replace(GOOD, **change).ok


def test_choice_of_projects() -> None:
    names = [project.name for project in field.chosen("")]
    assert len(names) == len(set(names)) > 100
    assert {project.name for project in field.chosen("peft/,litgpt")} == {
        "litgpt",
        *(name for name in names if name.startswith("peft/")),
    }
    with pytest.raises(SystemExit, match="'acelerate' is none of accelerate, chemprop"):
        field.chosen("acelerate")


def test_page_and_table() -> None:
    rows = [GOOD, Row("c", ran="not installed"), dataclasses.replace(GOOD, project="d/x"), Row("d/y", ran="no: a | b")]
    text = page(rows, "python -m benchmarks.field")
    assert "| 4 | 2 | 2 | 2 | 2 | 2 | 2 | 0 |" in text
    assert "| a | yes | 1 of 2 | 10 | 10 | 9 | yes | yes | yes | bit-identical |" in text
    assert "## d\n" in text
    assert "no: a \\| b" in text
    assert rows_table(rows).row_count == 4


def test_true_nonzeros_and_outputs(tmp_path: Path) -> None:
    layer = nn.Linear(4, 2)
    layer.weight.data[0] = 0
    assert true_nonzeros(nn.ModuleList([layer, layer])) == 6
    assert same(torch.zeros(2), torch.ones(2)) == "no: outputs differ by 1.0e+00"
    with pytest.raises(FileNotFoundError):
        load_plain(layer, tmp_path / "none.pt")
