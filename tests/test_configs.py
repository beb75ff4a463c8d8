"""Every shipped config parses, opens with the command that runs it, and names classes that exist."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fpe_lightning.cli import CLI
from fpe_lightning.sparse.semi_structured.format import not_semi_structured
from studies.__main__ import main as study

ROOT = Path(__file__).parent.parent
EVERY = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
STUDIES = [config for config in EVERY if "studies/" in config]
CONFIGS = [config for config in EVERY if config not in STUDIES]

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def command(config: str) -> list[str]:
    """The words of the first line, behind the comment sign."""
    return shlex.split((ROOT / config).read_text().splitlines()[0].removeprefix("#"))


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


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_line_is_a_command_that_runs_this_config_and_parses(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(config)
    assert words[:3] == ["python", "train.py", "fit"]
    assert config in words
    settings = parsed(words[2:], capsys)
    assert settings["model"]["class_path"] == "fpe_lightning.modules.Classifier"
    given = yaml.safe_load((ROOT / config).read_text())
    for key, value in given["trainer"].items():
        if not isinstance(value, (dict, list)):
            assert settings["trainer"][key] == value


@pytest.mark.parametrize("config", [config for config in CONFIGS if "trainer/" not in config])
def test_one_seed_reaches_everything_and_runs_keep_their_own_logs(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parsed([*command(config)[2:], "--seed_everything=7"], capsys)
    callbacks = {c["class_path"].rpartition(".")[2]: c["init_args"] for c in settings["trainer"]["callbacks"]}
    assert settings["data"]["init_args"]["seed"] == 7
    assert callbacks.get("ExpansionCallback", {}).get("seed", 7) == 7
    assert settings["model"]["init_args"]["network"]["init_args"].get("seed", 7) == 7
    assert settings["trainer"]["logger"]["init_args"]["name"] == Path(config).stem
    assert callbacks["ModelCheckpoint"]["monitor"] == callbacks["RunSummary"]["monitor"] == "val/accuracy"


@pytest.mark.parametrize("config", [config for config in CONFIGS if "trainer/" not in config])
def test_other_verbs_take_the_same_configs(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = ("validate", "test", "predict")[CONFIGS.index(config) % 3]  # one each: their parsers are alike
    assert parsed([verb, f"--config={config}"], capsys)["data"]["class_path"].startswith("fpe_lightning.data.")


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
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A split after the first epoch, whatever the config says, so that every line of it is used.
    settings = yaml.safe_load((ROOT / config).read_text())["trainer"]["callbacks"]
    settings[0]["init_args"]["epoch"] = 1
    short = write_config("short", {"trainer": {"callbacks": settings}})
    cli = CLI(
        f"fit --config={config} --config={short} --trainer.logger.save_dir={tmp_path} {words} "
        "--trainer.accelerator=cpu --trainer.limit_test_batches=1 --trainer.max_epochs=2".split()
    )
    assert "test/accuracy" in cli.trainer.callback_metrics
    assert "best val/accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("config", STUDIES)
def test_a_study_says_how_to_run_it_and_its_grid_can_be_shown(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
    callbacks = yaml.safe_load((ROOT / "configs/clip_probe_ddp_2to4.yaml").read_text())["trainer"]["callbacks"]
    callbacks[0]["init_args"]["epoch"] = 0  # so that every checkpoint is of the split network
    model = {"init_args": {"network": network}}
    short = write_config("short", {"data": data, "model": model, "trainer": {"callbacks": callbacks}})
    result = subprocess.run(
        [
            *(sys.executable, "train.py", "fit", "--config=configs/clip_probe_ddp_2to4.yaml"),
            *("--config=configs/trainer/ddp_cpu.yaml", f"--config={short}", "--trainer.max_epochs=2"),
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
