"""The table of training set-ups names tests that exist, and leaves none of their files out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "docs" / "training_set_ups.md").read_text()
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| set-up")]


def test_there_is_something_to_check() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:50] for row in ROWS])
def test_every_row_names_a_test_that_exists(row: str) -> None:
    _, _, result, tests, _ = row.split("|")
    assert result.strip()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", tests)
    assert named
    for path, function in named:
        text = (ROOT / path).read_text()
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), f"{path} has no {function}"


@pytest.mark.parametrize(
    "name",
    [
        *("set_ups", "optimizers_and_schedulers", "grad_scaler", "averages", "exchange", "compile", "resume"),
        *("distributed", "fsdp2"),
    ],
)
def test_every_file_about_set_ups_is_named(name: str) -> None:
    assert f"tests/callbacks/test_{name}.py" in TABLE
