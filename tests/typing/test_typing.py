"""Type checkers of a project that uses this library see its types, and find mistakes before a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CONSUMER, MISTAKES = HERE / "consumer.py", HERE / "mistakes.py"
pytestmark = pytest.mark.slow


def marked() -> set[int]:
    """Numbers of the lines with a mistake."""
    return {number for number, line in enumerate(MISTAKES.read_text().splitlines(), 1) if line.endswith("# mistake")}


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout


def mypy(path: Path) -> set[int]:
    """Numbers of the lines where ``mypy --strict`` finds an error."""
    output = run("mypy", "--strict", "--config-file=", "--no-error-summary", str(path))
    return {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}


def pyright(path: Path) -> set[int]:
    """Numbers of the lines where pyright finds an error."""
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, str(path)))
    errors = [each for each in found["generalDiagnostics"] if each["severity"] == "error"]
    return {each["range"]["start"]["line"] + 1 for each in errors}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_project_that_is_right_has_no_error(checker) -> None:
    assert checker(CONSUMER) == set()


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_every_mistake_is_found(checker) -> None:
    assert checker(MISTAKES) == marked()
