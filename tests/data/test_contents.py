"""Digests of files follow their contents, whatever times and sizes say, and are computed once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fpe_lightning.data import contents
from fpe_lightning.data.contents import digest_files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("FPE_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / "pictures" / name for name in ("a", "b", "c")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
        os.utime(path, ns=(0, 0))
    return paths


def read(paths: list[Path], monkeypatch: pytest.MonkeyPatch, later: float = 10.0) -> tuple[list[str], list[str]]:
    """The digests, and which files were read for them, some seconds later."""
    seen: list[str] = []

    def compute(path: Path) -> str:
        seen.append(path.name)
        return path.read_text()

    now = time.time_ns() + int(later * 1e9)
    monkeypatch.setattr(contents.time, "time_ns", lambda: now)
    return digest_files(paths, paths[0].parent, compute), sorted(seen)


def test_a_file_is_read_once(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(files, monkeypatch) == (["a", "b", "c"], ["a", "b", "c"])
    assert read(files, monkeypatch) == (["a", "b", "c"], [])


def test_equal_size_and_time_do_not_hide_another_content(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read(files, monkeypatch)
    files[0].write_text("x")  # in place
    files[1].with_name("new").write_text("y")
    os.replace(files[1].with_name("new"), files[1])  # another inode
    for path in files[:2]:
        os.utime(path, ns=(0, 0))
    assert read(files, monkeypatch, later=20) == (["x", "y", "c"], ["a", "b"])


def test_what_has_just_changed_is_read_again(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read(files, monkeypatch, later=0)
    assert read(files, monkeypatch, later=0)[1] == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', '{"a": [[1], 2, 3]}', '{"a": [null, "x"]}'])
def test_a_damaged_memory_is_forgotten(files: list[Path], damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read(files, monkeypatch)
    (memory,) = (files[0].parents[1] / "cache/contents").glob("*.json")
    memory.write_text(damage)
    assert read(files, monkeypatch) == (["a", "b", "c"], ["a", "b", "c"])


def test_without_a_cache_they_are_computed(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPE_CACHE", str(files[0]))
    assert read(files, monkeypatch)[0] == ["a", "b", "c"]
    files.append(files[0].with_name("nowhere"))
    assert digest_files(files, files[0].parent)[3] == ""
