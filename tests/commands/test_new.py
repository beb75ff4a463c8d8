"""``fpe new`` writes a project that runs at once, whose tests pass, also with files of its user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpe_lightning.commands.main import main

ROOT = Path(__file__).parent.parent.parent


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_a_project_has_its_own_name_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", str(tmp_path / "My-Probe")]) == 0
    files = {path.relative_to(tmp_path / "My-Probe").as_posix() for path in (tmp_path / "My-Probe").rglob("*")}
    assert {
        "train.py",
        "my_probe/network.py",
        "tests/test_my_probe.py",
        ".gitignore",
        ".github/workflows/test.yml",
    } <= files
    assert f"holds {sum((tmp_path / 'My-Probe' / file).is_file() for file in files)} files" in capsys.readouterr().out
    assert not any(
        "PROJECT" in (tmp_path / "My-Probe" / file).read_text() for file in files if "." in file[1:] and "/" not in file
    )
    assert [path.name for path in tmp_path.iterdir()] == ["My-Probe"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("1st", "is named like a Python package"),
        ("class", "is named like"),
        ("tests", "taken"),
        ("old", "exists already"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").touch()
    answer = main(["new", str(tmp_path / name)])
    assert isinstance(answer, str)
    assert sentence in answer
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "old"]


@pytest.mark.slow
def test_its_tests_pass_before_and_after_its_user_adds_files(tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    main(["new", str(folder)])
    run(folder, "-m", "ruff", "check", ".")
    (folder / "configs/experiment/mine.yaml").write_text("base: ../base.yaml\nmodel: {my: own}\n")
    (folder / "probe/mine.py").write_text("import a_library_that_is_not_here\n")
    assert "3 passed" in run(folder, "-m", "pytest", "-q")
    words = "train.py fit --config configs/experiment/first.yaml --config configs/logger/csv.yaml"
    output = run(folder, *words.split(), "--trainer.max_epochs=7", "--trainer.enable_progress_bar=false")
    assert "width of network.layers.0" in output
    assert "test/accuracy" in output
    assert list(folder.glob("logs/probe/version_0/metrics.csv"))
