"""The command ``fpe`` finds its words, answers mistakes with a sentence, and loads nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fpe_lightning.commands.main import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {word}" in shown for word in COMMANDS)


def test_help_loads_neither_lightning_nor_an_extra() -> None:
    code = "import sys; from fpe_lightning.commands.main import main; main([]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"lightning", "jsonargparse", "matplotlib", "optuna", "torchvision", "open_clip"}


@pytest.mark.slow
def test_fit_takes_a_config_of_the_package_from_any_folder(tmp_path: Path) -> None:
    words = ["fit", "--config", "configs/boolean.yaml", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-m", "fpe_lightning.commands.main", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert yaml.safe_load(done.stdout)["data"]["class_path"] == "fpe_lightning.data.BooleanDataModule"
