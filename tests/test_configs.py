"""Every shipped config parses, opens with the command that runs it, and names classes that exist."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fpe_lightning.callbacks import ExpansionCallback, Rewire
from fpe_lightning.cli import CLI
from fpe_lightning.sparse.semi_structured.format import not_semi_structured
from tests.support.shipped import ADDED, EXPERIMENTS, STUDIES, TRAINERS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def file(name: str) -> str:
    return f"configs/{name}.yaml"


def command(name: str) -> list[str]:
    """The words of the first line, after the comment sign."""
    return shlex.split((ROOT / file(name)).read_text().splitlines()[0].removeprefix("#"))


def parsed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        CLI([*args, "--print_config"])
    output = capsys.readouterr()
    assert stop.value.code == 0, output.err
    return yaml.safe_load(output.out)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", [*EXPERIMENTS, *TRAINERS, *ADDED])
def test_the_first_line_is_a_command_that_runs_this_config_and_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(name)
    assert words[:3] == ["python", "train.py", "fit"]
    assert file(name) in words
    settings = parsed(words[2:], capsys)
    assert settings["model"]["class_path"] == "fpe_lightning.modules.Classifier"
    given = yaml.safe_load((ROOT / file(name)).read_text())
    for key, value in given["trainer"].items():
        if not isinstance(value, (dict, list)):
            assert settings["trainer"][key] == value


def expansions_of(settings: Any) -> list[dict[str, Any]]:
    """The arguments of all expansions anywhere in a config."""
    if isinstance(settings, list):
        return [found for each in settings for found in expansions_of(each)]
    if not isinstance(settings, dict):
        return []
    own = [settings["init_args"]] if str(settings.get("class_path")).startswith("fpe_lightning.Paper") else []
    return own + [found for each in settings.values() for found in expansions_of(each)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_seed_reaches_everything_and_runs_keep_their_own_logs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parsed([*command(name)[2:], "--seed_everything=7"], capsys)
    callbacks = {c["class_path"].rpartition(".")[2]: c["init_args"] for c in settings["trainer"]["callbacks"]}
    assert settings["data"]["init_args"]["seed"] == 7
    split = callbacks.get("ExpansionCallback", {}).get("expansion", {})
    assert split.get("init_args", {}).get("seed", 7) == 7
    assert all(expansion["seed"] == 7 for expansion in expansions_of(settings))
    assert settings["model"]["init_args"]["network"]["init_args"].get("seed", 7) == 7
    assert settings["trainer"]["logger"]["init_args"]["name"] == Path(name).name
    assert callbacks["ModelCheckpoint"]["monitor"] == callbacks["RunSummary"]["monitor"] == "val/accuracy"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_other_verbs_take_the_same_configs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = ("validate", "test", "predict")[EXPERIMENTS.index(name) % 3]  # one each: their parsers are alike
    assert parsed([verb, f"--config={file(name)}"], capsys)["data"]["class_path"].startswith("fpe_lightning.data.")


def test_all_shipped_configs_are_in_the_lists() -> None:
    assert all((ROOT / file(name)).is_file() for name in (*EXPERIMENTS, *TRAINERS, *ADDED))
    assert all((ROOT / file(f"studies/{name}")).is_file() for name in STUDIES)


def test_an_experiment_states_what_differs_and_the_first_one_everything() -> None:
    assert "base" not in yaml.safe_load((ROOT / file("clip_probe")).read_text())
    lines = {name: len((ROOT / file(name)).read_text().splitlines()) for name in EXPERIMENTS}
    assert all(count <= 50 for name, count in lines.items() if name != "clip_probe")


def test_a_config_of_a_user_breaks_nothing_here(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs/mine.yaml").write_text("base: clip_probe.yaml\nmodel: {my: own}\n")
    (tmp_path / "configs/recipes/broken.yaml").write_text(": : :\n")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "fpe_lightning", "studies"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = [
        "tests/test_configs.py",
        "tests/test_readme.py",
        "-k",
        "in_the_lists or is_named or probe_dense or first_one",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("configs/boolean.yaml", "--data.train_size=64 --trainer.check_val_every_n_epoch=1"),
        pytest.param(
            "configs/glyph_cnn.yaml", "--data.train_size=188 --trainer.limit_val_batches=1", marks=pytest.mark.slow
        ),
    ],
)
def test_what_needs_no_download_runs(
    config: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A split after the first epoch, whatever the config says, so that every line of it is used.
    cli = CLI(
        f"fit --config={config} --trainer.callbacks.epoch=1 --trainer.logger.save_dir={tmp_path} {words} "
        "--trainer.accelerator=cpu --trainer.limit_test_batches=1 --trainer.max_epochs=2".split()
    )
    assert "test/accuracy" in cli.trainer.callback_metrics
    assert "val/accuracy" in capsys.readouterr().out


def test_the_recipe_of_two_splits_runs_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--data.train_size=256 --data.val_size=64 --data.test_size=64 --trainer.max_epochs=50"
    cli = CLI(
        f"fit --config={file('recipes/two_splits')} --trainer.logger.save_dir={tmp_path} {words} "
        "--trainer.check_val_every_n_epoch=25 --trainer.accelerator=cpu".split()
    )
    first, second = (c for c in cli.trainer.callbacks if isinstance(c, ExpansionCallback))  # type: ignore[attr-defined]
    assert [report.sites[0].width_after for report in (*first.reports, *second.reports)] == [4, 8]
    nonzeros = {report.nonzeros_after for report in (*first.reports, *second.reports)}
    assert nonzeros == {first.reports[0].nonzeros_before}
    assert "test/accuracy" in cli.trainer.callback_metrics


def rewired(config: str, words: str, tmp_path: Path) -> Rewire:
    """The callback at the end of a run."""
    words = f"fit --config={file(config)} --trainer.logger.save_dir={tmp_path} --trainer.accelerator=cpu {words}"
    cli = CLI(words.split())
    assert "test/accuracy" in cli.trainer.callback_metrics
    [callback] = (each for each in cli.trainer.callbacks if isinstance(each, Rewire))  # type: ignore[attr-defined]
    assert {report.nonzeros_after for report in callback.reports} == {callback.reports[0].nonzeros_before}
    return callback


def test_rewiring_is_one_word_of_the_command_line(tmp_path: Path) -> None:
    words = "--data.train_size=64 --trainer.max_epochs=8 --trainer.check_val_every_n_epoch=1"
    words += " --trainer.callbacks.epoch=1 --trainer.callbacks+=Rewire --trainer.callbacks.window=1.0"
    assert rewired("boolean", words, tmp_path).schedule.window == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["rewire", "split_and_rewire"])
def test_the_recipes_of_rewiring_run_to_the_end(recipe: str, tmp_path: Path) -> None:
    words = "--data.train_size=188 --trainer.limit_val_batches=1 --trainer.limit_test_batches=1 --trainer.max_epochs=4"
    rewired(f"recipes/{recipe}", words, tmp_path)


@pytest.mark.parametrize("config", [file(f"studies/{name}") for name in STUDIES])
def test_a_study_says_how_to_run_it_and_its_grid_can_be_shown(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from studies.__main__ import main as study

    monkeypatch.setattr("studies.__main__.seconds_of", lambda blocks: 60.0)  # which would read the data
    words = (ROOT / config).read_text().splitlines()[0].removeprefix("# ").split()
    assert words[:3] == ["python", "-m", "studies"]
    assert words[words.index("--config") + 1] == config
    assert study([*words[3:], "--dry-run", f"--output={tmp_path}"]) == 0


@pytest.mark.slow
def test_the_twin_of_the_2to4_config_trains_on_two_processes_without_a_gpu(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    # Small data in the place of embeddings; the split, the precision and the strategy are those of the config.
    boolean = {"inputs": 64, "train_size": 64, "val_size": 64, "test_size": 64, "target": "class", "batch_size": 16}
    data = {"class_path": "fpe_lightning.data.BooleanDataModule", "init_args": boolean}
    network = {"init_args": {"in_features": 64, "out_features": 2}}
    model = {"init_args": {"network": network}}
    short = write_config("short", {"data": data, "model": model})
    result = subprocess.run(
        [
            *(sys.executable, "train.py", "fit", "--config=configs/clip_probe_ddp_2to4.yaml"),
            *("--config=configs/trainer/ddp_cpu.yaml", f"--config={short}", "--trainer.max_epochs=2"),
            "--trainer.callbacks.epoch=0",  # so that every checkpoint is of the split network
            f"--trainer.logger.save_dir={tmp_path}",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "64 -> 128" in result.stdout
    (last,) = tmp_path.rglob("last.ckpt")
    state = torch.load(last, weights_only=False)["state_dict"]
    assert "network.layers.0.fpe_semi_structured" in state
    assert not_semi_structured(state["network.layers.0.fpe_mask_weight"]) is None
