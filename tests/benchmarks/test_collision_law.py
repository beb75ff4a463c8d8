"""Random partitions keep to the law of collisions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.collision_law import Measured, figure, main, measure


def test_two_clauses_meet_as_often_as_the_law_says_where_inputs_are_many() -> None:
    cell = measure(literals=2, alpha=2, clauses=8, neurons=32, layers=60, inputs=400)
    assert cell.collisions == pytest.approx(cell.law, rel=0.1)
    assert cell.law == 1 / 8
    assert cell.coverage == 1
    assert measure(literals=4, alpha=8, clauses=8, neurons=4, layers=20, inputs=64).coverage < 0.1


def test_it_prints_a_table_and_draws_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "law.png"
    monkeypatch.setattr(sys, "argv", ["", "--layers", "2", "--figure", str(path)])
    main()
    assert "alpha^-(2k-1)" in capsys.readouterr().out
    assert path.stat().st_size > 0
    left, right = figure([Measured(k, 2, 0.1, 1.0) for k in (2, 3, 4)]).axes
    assert left.get_yscale() == "log"
    assert right.get_ylabel() == "clauses whole in some child"
