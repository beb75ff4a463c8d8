"""The command line: a grid runs, goes on after a kill, and bad input gets one sentence."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fpe_lightning import __version__
from studies import results, workers
from studies.__main__ import main
from studies.training import run_block


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
    monkeypatch.setattr(workers, "run_block", killed)
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
        (["bolean"], "Unknown study 'bolean'. Did you mean 'boolean'? Known: boolean, "),
        (["boolean", "--arms", "{dense: Dense, a: Splitt}"], "Unknown class `Splitt`. Did you mean `Split`?"),
        (["boolean", "--arms", "{a: {att: 3}}"], "Unknown key `att`. Did you mean `at`?"),
        (["boolean", "--arms", "{a: {expansion: {prune: incomin}}}"], "Unknown pruning rule 'incomin'. Did you mean"),
        (
            ["boolean", "--arms", "{a: {expansion: {alpha: 4}}}"],
            "The expansion of an arm leaves `alpha` to the run, fo",
        ),
        (
            ["boolean", "--arms", "{a: {expansion: SemiStructured, alpha: 4}}"],
            "SemiStructured always has alpha=2, foun",
        ),
        (["boolean", "--seeds", 0], "The grid is empty: 2 settings x 3 arms x 0 seeds; give at least one of each."),
        (["boolean", "--arms", "{}"], "The grid is empty: 2 settings x 0 arms x 3 seeds"),
        (["boolean", "--settings", "{}"], "The grid is empty: 0 settings"),
        (["boolean", "--jobs", 0], "`--jobs` has to be at least 1, found 0."),
        (["boolean", "--block", 0], "`block` has to be at least 1"),
        (["boolean", "--seed", 3], "Unknown key `seed`. Did you mean `seeds`?"),
        (["boolean", "--grid", "[{width: [2]}]"], "Unknown key `width` of a grid. Known: hidden, alpha"),
        (["boolean", "--grid", "[{hidden: []}]"], "The grid is empty: 0 settings"),
        (
            ["boolean", "--grid", "[{lr: [fast]}]"],
            "Setting 'S lr=fast' cannot be: Parser key \"setting.lr\": Expected a <class 'float'>. Got value: fast",
        ),
        (
            ["boolean", "--arms", "{dense: Dense, random: Split, dense: Split}"],
            "'dense' is given twice; give each key on",
        ),
        (["boolean", "--settings.S.inputs", 3], "Setting 'S' has no data: 8 disjoint clauses of 3 literals do not fit"),
        (["boolean", "--ray", "auto", "--jobs", 4], "A Ray cluster has workers of its own: drop `--jobs 4`, or give "),
        (
            ["boolean", "--arms", "{late: {at: 100}}"],
            "Arm 'late' cannot be in setting 'S': it splits at epoch 100, but",
        ),
        (["studies.boolen.Regime"], "The study 'studies.boolen.Regime' cannot be imported: No module named"),
        (
            ["studies.boolean.Task"],
            "'studies.boolean.Task' is no subclass of studies.setting.Setting, so it is no study.",
        ),
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


def test_an_arm_of_a_config_splits_twice_and_refits(tiny: Path, tmp_path: Path) -> None:
    then = "{at: 4, expansion: {partition: residual_interaction, prune: DiscriminantRefit, optimizer_state: reset}}"
    arms = f"{{dense: Dense, twice: {{at: 2, expansion: {{partition: residual_interaction}}, then: {then}}}}}"
    words = ["--config", tiny, "--arms", arms, "--seeds", 1, "--output", tmp_path / "out"]
    code, said = run("boolean", *words)
    assert code == 0, said
    assert "4 runs, 0 failed" in said
    config = json.loads(records(tmp_path / "out")[1]["config"])["arm"]
    assert config["init_args"]["then"]["init_args"]["at"] == 4


def test_a_study_by_import_path_needs_no_registration(tiny: Path, tmp_path: Path) -> None:
    run("boolean", "--config", tiny, "--output", tmp_path / "name", "--seeds", 1)
    run("studies.boolean.Regime", "--config", tiny, "--output", tmp_path / "path", "--seeds", 1)
    assert records(tmp_path / "name") == records(tmp_path / "path")


def test_a_grid_makes_settings_of_their_own(tiny: Path, tmp_path: Path) -> None:
    code, said = run("boolean", "--config", tiny, "--output", tmp_path, "--dry-run", "--grid", "[{hidden: [2, 4]}]")
    assert code == 0
    assert "S hidden=2" in said
    assert "36 runs, about" in said


@pytest.mark.parametrize(
    ("study", "dataset", "sentence"),
    [
        ("pixels", "fashion_mnist", "FashionMNIST was not found or is damaged; put the four files "),
        ("clip_probe", "cifar100", "CIFAR100 was not found or is damaged; put the files of "),
        ("pixels", "fashion_mnits", "Unknown data set 'fashion_mnits'. Did you mean 'fashion_mnist'?"),
    ],
)
def test_data_that_are_not_there_get_one_sentence_and_no_folder(
    study: str, dataset: str, sentence: str, tmp_path: Path
) -> None:
    words = ["--settings", f"{{S: {{dataset: {dataset}, data_dir: {tmp_path}}}}}", "--arms", "{dense: Dense}"]
    code, said = run(study, *words, "--output", tmp_path / "out")
    assert code == 2
    assert said.startswith(f"error: Setting 'S' has no data: {sentence}")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_downloads_nothing_and_says_why_it_cannot_estimate(tmp_path: Path) -> None:
    words = ["--settings", f"{{S: {{dataset: fashion_mnist, data_dir: {tmp_path}, download: true}}}}"]
    code, said = run("pixels", *words, "--arms", "{dense: Dense}", "--dry-run")
    assert code == 0
    assert "24 runs, no estimate (" in said
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_config_gets_one_sentence(tiny: Path, tmp_path: Path) -> None:
    run("boolean", "--config", tiny, "--output", tmp_path / "out")
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out", "--settings.S.lr", 0.1)
    assert code == 2
    assert "holds results of another config at `settings.S.lr`: 0.003, asked for 0.1; give another `--output`" in said


def test_a_folder_of_another_version_gets_one_sentence(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "__version__", "0.0.1")
    results.Results(tmp_path / "out", "boolean", {})
    monkeypatch.undo()
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out")
    assert code == 2
    assert "holds results of another version: '0.0.1', asked for " in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("study.yaml", "{", "study.yaml` is damaged, so its folder cannot go on; give another `--output`."),
        ("study.yaml", "", "study.yaml` is damaged, so its folder cannot go on; give another `--output`."),
        ("results.csv", "a,b\n1,2\n", "results.csv` holds a row that is no run of this version (KeyError: 'arm'); "),
    ],
)
def test_a_damaged_folder_gets_one_sentence_and_is_left_alone(
    name: str, text: str, sentence: str, tiny: Path, tmp_path: Path
) -> None:
    run("boolean", "--config", tiny, "--output", tmp_path / "out", "--seeds", 1)
    (tmp_path / "out" / name).write_text(text)
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out", "--seeds", 1)
    assert (code, len(said.splitlines())) == (2, 1)
    assert sentence in said
    assert (tmp_path / "out" / name).read_text() == text


def test_an_output_that_is_a_file_gets_one_sentence(tiny: Path) -> None:
    code, said = run("boolean", "--config", tiny, "--output", tiny)
    assert code == 2
    assert "tiny.yaml` cannot be a folder of results: File exists; give another `--output`." in said


def test_a_cell_that_diverges_is_recorded_with_why_and_the_rest_goes_on(tiny: Path, tmp_path: Path) -> None:
    code, said = run("boolean", "--config", tiny, "--output", tmp_path / "out", "--settings.T.lr", 1e38)
    assert code == 0
    assert "18 runs, 9 failed" in said
    assert "Failed: dense, seeds 0, 1, 2: weights are no longer finite: the run has diverged" in said
    found = records(tmp_path / "out")
    assert {row["status"] for row in found if row["setting"] == "S"} == {"done"}
    assert {row["status"] for row in found if row["setting"] == "T"} == {"failed"}
    assert "Failed: dense, seeds 0, 1, 2" in (tmp_path / "out" / "report.html").read_text()


def test_a_row_says_with_what_it_was_made(tiny: Path, tmp_path: Path) -> None:
    run("boolean", "--config", tiny, "--output", tmp_path / "out", "--seeds", 1)
    for row in records(tmp_path / "out"):
        config = json.loads(row["config"])
        kind = {"dense": "Dense", "random": "Split", "wide_sparse": "WideSparse"}[row["arm"]]
        assert (row["seed"], row["version"], row["torch"]) == ("0", __version__, torch.__version__)
        assert config["setting"]["split"] == {"S": 2, "T": 3}[row["setting"]]
        assert config["setting"]["hidden"] == 8  # a default, resolved
        assert config["arm"]["class_path"] == kind


@pytest.mark.parametrize("path", sorted(Path("configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_opens_with_its_command_and_can_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = path.read_text().splitlines()[0].removeprefix("# python -m studies ").split()
    monkeypatch.setattr("studies.__main__.seconds_of", lambda blocks: 60.0)
    code, said = run(*words, "--dry-run")
    assert (code, words[2]) == (0, str(path))
    assert " runs, about " in said
