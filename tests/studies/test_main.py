"""The command line: a grid runs, goes on after a kill, and bad input gets one sentence."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from fpe_lightning.studies import runner
from fpe_lightning.studies.__main__ import main
from fpe_lightning.studies.training import run_block


def run(*words: object) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=300)
    code = main([str(word) for word in words], console)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


def records(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_a_grid_runs_into_one_folder(tiny: Path, tmp_path: Path) -> None:
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out")
    assert code == 0
    assert "18 runs, 0 failed" in said
    assert "time left" in said
    assert len(records(tmp_path / "out")) == 18
    for name in ("table.md", "figure.png", "figure.svg", "report.html", "study.yaml"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_a_killed_study_goes_on_from_its_finished_cells(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []

    def killed(regime, arms, seeds, advance=None):  # type: ignore[no-untyped-def]
        calls.append(tuple(seeds))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_block(regime, arms, seeds, advance)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("boolean", "--config", tiny, "--output", whole)
    monkeypatch.setattr(runner, "run_block", killed)
    code, said = run("boolean", "--config", tiny, "--output", broken)
    assert code == 130
    assert "goes on from the runs that are finished" in said
    assert len(records(broken)) == 12  # seeds 0 and 1 of both settings
    code, _ = run("boolean", "--config", tiny, "--output", broken)
    assert (code, calls) == (0, [(0, 1), (0, 1), (2,), (2,), (2,)])
    assert records(broken) == records(whole)  # to the last digit: a cell's seed decides everything
    assert run("boolean", "--config", tiny, "--output", broken)[0] == 0
    assert len(calls) == 5  # nothing was left to do


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(tiny: Path, tmp_path: Path) -> None:
    run("boolean", "--config", tiny, "--output", tmp_path / "one")
    code, _ = run("boolean", "--config", tiny, "--output", tmp_path / "two", "--jobs", 2)
    assert code == 0

    def order(record: dict[str, str]) -> tuple[str, ...]:
        return record["setting"], record["arm"], record["seed"]

    assert sorted(records(tmp_path / "two"), key=order) == sorted(records(tmp_path / "one"), key=order)


def test_a_dry_run_prints_the_grid_and_an_estimate_and_writes_nothing(tiny: Path, tmp_path: Path) -> None:
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out", "--dry-run")
    assert code == 0
    assert "18 runs, about" in said
    assert "dense, random, wide_sparse" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["bolean"],
            "Unknown study 'bolean'. Did you mean 'boolean'? Known: boolean, clip_probe, cnn, deep, pixels, ",
        ),
        (["boolean", "--arms", "[dense, randum]"], "Unknown arm 'randum'. Did you mean 'random'?"),
        (["boolean", "--seeds", 0], "The grid is empty: 2 settings x 3 arms x 0 seeds; give at least one of each."),
        (["boolean", "--arms", "[]"], "The grid is empty: 2 settings x 0 arms x 3 seeds"),
        (["boolean", "--settings", "{}"], "The grid is empty: 0 settings"),
        (["boolean", "--jobs", 0], "`--jobs` has to be at least 1, found 0."),
        (["boolean", "--block", 0], "`block` has to be at least 1"),
        (["boolean", "--seed", 3], "Unknown key `seed`. Did you mean `seeds`?"),
        (["boolean", "--grid", "[{width: [2]}]"], "Unknown key `width` of a grid. Known: hidden, alpha"),
        (["boolean", "--grid", "[{hidden: []}]"], "The grid is empty: 0 settings"),
        (["boolean", "--arms", "[random_at_100]"], "Arm 'random_at_100' splits at epoch 100, but setting 'S' has 6"),
    ],
)
def test_bad_input_gets_one_sentence(tiny: Path, tmp_path: Path, words: list[object], sentence: str) -> None:
    given = [words[0], "--config", tiny, *words[1:], "--output", tmp_path / "out"]
    code, said = run(*given)
    assert code == 2
    assert said.startswith("error: ")
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_grid_makes_settings_of_their_own(tiny: Path, tmp_path: Path) -> None:
    code, said = run("boolean", "--config", tiny, "--output", tmp_path, "--dry-run", "--grid", "[{hidden: [2, 4]}]")
    assert code == 0
    assert "S hidden=2" in said
    assert "36 runs, about" in said


def test_data_that_are_not_there_get_one_sentence_and_no_folder(tiny: Path, tmp_path: Path) -> None:
    words = ["--settings", f"{{S: {{dataset: fashion_mnist, data_dir: {tmp_path}}}}}", "--arms", "[dense]"]
    code, said = run("pixels", *words, "--output", tmp_path / "out")
    assert code == 2
    assert said.startswith("error: Setting 'S' has no data: ")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_downloads_nothing_and_says_why_it_cannot_estimate(tmp_path: Path) -> None:
    words = ["--settings", f"{{S: {{dataset: fashion_mnist, data_dir: {tmp_path}, download: true}}}}"]
    code, said = run("pixels", *words, "--arms", "[dense]", "--dry-run")
    assert code == 0
    assert "24 runs, no estimate (" in said
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_config_gets_one_sentence(tiny: Path, tmp_path: Path) -> None:
    run("boolean", "--config", tiny, "--output", tmp_path / "out")
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out", "--settings.S.lr", 0.1)
    assert code == 2
    assert "holds results of another config at `settings.S.lr`: 0.003, asked for 0.1; give another `--output`" in said


@pytest.mark.parametrize("path", sorted(Path("configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_opens_with_its_command_and_can_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = path.read_text().splitlines()[0].removeprefix("# python -m fpe_lightning.studies ").split()
    monkeypatch.setattr("fpe_lightning.studies.__main__.seconds_of", lambda blocks: 60.0)
    code, said = run(*words, "--dry-run")
    assert (code, words[2]) == (0, str(path))
    assert " runs, about " in said
