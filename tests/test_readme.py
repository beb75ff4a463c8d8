"""The README says what is true: files and modules that it names exist, options parse, Python blocks run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from fpe_lightning.callbacks.fsdp2.checks import TESTED
from fpe_lightning.cli import CLI
from tests.support.shipped import EXPERIMENTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Words of every command in a bash block; lines that end in a backslash go on."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in [*shlex.split(line, comments=True), ";"]]
    found: list[list[str]] = [[]]
    for part in parts:
        if part in (";", "&&"):
            found.append([])
        else:
            found[-1].append(part)
    return [words for words in found if words]


TRAINING = sorted({tuple(words[words.index("train.py") + 1 :]) for words in commands() if "train.py" in words})


def test_there_is_something_to_check() -> None:
    assert TRAINING
    assert blocks("python")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/]+\.yaml", README))))
def test_every_config_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_every_config_of_an_experiment_is_named() -> None:
    assert all(f"configs/{name}.yaml" in README for name in EXPERIMENTS if "/" not in name)


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", README))))
def test_every_module_that_is_run_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize("args", TRAINING, ids=" ".join)
def test_every_training_command_parses(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        CLI([*args, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_python_block_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = blocks("python")[number]
    gated = "ExpandableModelParallelStrategy(" in block and not torch.__version__.startswith(TESTED)
    with pytest.raises(MisconfigurationException, match="was tested with torch") if gated else nullcontext():
        exec(compile(block, f"README.md, Python block {number}", "exec"), {"__name__": "__main__"})
