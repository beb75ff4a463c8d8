"""The file of choices is read by the machine and versions that wrote it, and by nobody else."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from fpe_lightning.sparse.choices import Choice, ChoiceFile, this_machine

CHOICE = Choice("grouped", {"masked": 2e-3, "grouped": 1e-3})


def test_what_is_remembered_is_found_again(tmp_path: Path) -> None:
    file = ChoiceFile(tmp_path / "sub" / "layouts.json")
    assert file.load() == {}
    file.remember("first", CHOICE)
    file.remember("second", Choice("masked", {"masked": 1.0}))
    assert ChoiceFile(file.path).load() == {"first": CHOICE, "second": Choice("masked", {"masked": 1.0})}
    assert os.listdir(file.path.parent) == ["layouts.json"]  # no other file is left


@pytest.mark.parametrize("differs", ["cpu", "gpu", "torch", "fpe_lightning"])
def test_a_file_from_elsewhere_is_ignored_with_a_line(
    tmp_path: Path, differs: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = ChoiceFile(tmp_path / "layouts.json")
    file.remember("key", CHOICE)
    content = json.loads(file.path.read_text())
    content["machine"][differs] = "another"
    file.path.write_text(json.dumps(content))
    with caplog.at_level(logging.INFO):
        assert file.load() == {}
    assert f"is ignored: it was measured elsewhere ({differs} another, here {this_machine()[differs]})" in caplog.text
    file.remember("other", CHOICE)
    assert list(file.load()) == ["other"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"machine": {}}', '{"machine": {}, "choices": {"a": {"b": 1}}}'])
def test_a_damaged_file_is_ignored_with_a_line(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    file = ChoiceFile(tmp_path / "layouts.json")
    file.path.write_text(content)
    assert file.load() == {}
    assert "is ignored: it cannot be read as choices of layouts" in caplog.text
    file.remember("key", CHOICE)
    assert file.load() == {"key": CHOICE}


def test_a_folder_that_cannot_be_written_to_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    ChoiceFile(tmp_path / "file" / "layouts.json").remember("key", CHOICE)
    assert "cannot be remembered" in caplog.text


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ChoiceFile(tmp_path / "layouts.json")
    file.remember("key", CHOICE)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.remember("other", CHOICE)
    assert file.load() == {"key": CHOICE}


def test_a_choice_is_printed_with_its_times() -> None:
    assert str(CHOICE) == "grouped (grouped 1.000 ms, masked 2.000 ms)"
