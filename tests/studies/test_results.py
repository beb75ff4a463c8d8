"""A folder of results loses nothing and mixes nothing."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from studies import results as module
from studies.errors import StudyError
from studies.results import Results, Row

CONFIG = {"seeds": 2, "settings": {"A": {"lr": 0.1}}}


def row(seed: int, arm: str = "dense", why: str = "") -> Row:
    return Row(arm, seed, "failed" if why else "done", why, 209, 0.9, 0.8, 0.123456789, 1.5, "A")


def append(folder: Path, seeds: range) -> None:
    results = Results(folder, "boolean", CONFIG)
    for seed in seeds:
        results.append([row(seed)])


def test_rows_come_back_as_they_went_and_each_cell_once(tmp_path: Path) -> None:
    results = Results(tmp_path, "boolean", CONFIG)
    rows = [row(0), row(1, why='a "message", with a comma\nand a line')]
    results.append(rows)
    results.append([row(0), row(2)])
    found = Results(tmp_path, "boolean", CONFIG).rows()
    assert found[0] == rows[0]
    assert found[1].why == 'a "message", with a comma and a line'
    assert [each.seed for each in found] == [0, 1, 2]


@pytest.mark.parametrize("kept", [5, 70])
def test_half_a_row_that_a_kill_left_behind_is_dropped_and_written_again(tmp_path: Path, kept: int) -> None:
    results = Results(tmp_path, "boolean", CONFIG)
    results.append([row(0)])
    whole = results.path.read_text()
    results.path.write_text(whole[:kept])
    assert results.rows() == []
    results.append([row(0)])
    assert results.path.read_text() == whole


def test_two_processes_at_work_on_one_folder_lose_no_row(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append, args=(tmp_path, range(start, start + 20))) for start in (0, 10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(each.seed for each in Results(tmp_path, "boolean", CONFIG).rows()) == list(range(30))


def test_a_folder_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Results(tmp_path / "a", "boolean", CONFIG)
    with pytest.raises(StudyError, match="holds results of another study: 'boolean', asked for 'pixels'"):
        Results(tmp_path / "a", "pixels", CONFIG)
    with pytest.raises(StudyError, match=r"another config at `settings\.A\.lr`: 0\.1, asked for 0\.2; give"):
        Results(tmp_path / "a", "boolean", {"seeds": 2, "settings": {"A": {"lr": 0.2}}})
    monkeypatch.setattr(module, "__version__", "9.9")
    with pytest.raises(StudyError, match=r"another version: '.*', asked for '9\.9'"):
        Results(tmp_path / "a", "boolean", CONFIG)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("precious")
    with pytest.raises(StudyError, match="holds files that are no study's"):
        Results(tmp_path / "b", "boolean", CONFIG)
    assert [path.name for path in (tmp_path / "b").glob("[!.]*")] == ["thesis.txt"]


def test_measures_are_further_columns_and_one_that_was_not_taken_stays_empty(tmp_path: Path) -> None:
    results = Results(tmp_path, "boolean", CONFIG, ["capacity", "cosine"])
    rows = [
        replace(row(0), measures={"cosine": -0.25}),
        replace(row(1), measures={"capacity": 0.1, "cosine": 0.5}),
        row(2),
    ]
    results.append(rows)
    assert results.path.read_text().splitlines()[0].endswith(",config,capacity,cosine")
    assert results.path.read_text().splitlines()[1].endswith(",A,,,,,-0.25")
    assert Results(tmp_path, "boolean", CONFIG).rows() == rows
    whole = results.path.read_text()
    with pytest.raises(ValueError, match=r"^The measure 'capacty' has no column in `.*results\.csv`; declare it"):
        results.append([replace(row(3), measures={"capacty": 0.1})])
    assert results.path.read_text() == whole
