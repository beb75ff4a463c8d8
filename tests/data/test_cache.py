"""A cache is written whole or not at all, and never served for something that it is not."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fpe_lightning.data.cache import CacheKey, ensure_cache, open_cache
from fpe_lightning.paths import default_cache_dir

KEY = CacheKey("tiny/rows", "digest", "grey", "squares", "print", "train", 10, 4, "float16", ("a", "b"))
FEATURES = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
LABELS = np.arange(10) % 2


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, 10, 4):
        yield FEATURES[start : start + 4], LABELS[start : start + 4]


def never() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    raise AssertionError("the cache was there, and yet it was encoded again")


def test_what_is_written_is_mapped(tmp_path: Path) -> None:
    folder = ensure_cache(KEY, tmp_path, batches)
    features, labels = open_cache(folder, KEY, verify=True)
    assert isinstance(features, np.memmap)
    assert np.array_equal(features, FEATURES.astype(np.float16))
    assert np.array_equal(labels, LABELS)
    assert sorted(path.name for path in folder.iterdir()) == ["features.npy", "labels.npy", "manifest.json"]
    features[:] = 0  # changes the copy in memory alone
    assert ensure_cache(KEY, tmp_path, never) == folder


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": "other"},
        {"weights": "other"},
        {"preprocessing": "colour"},
        {"fingerprint": "other"},
        {"split": "val"},
        {"dtype": "float32"},
        {"classes": ("b", "a")},
    ],
)
def test_any_change_of_the_key_has_a_folder_of_its_own(change: dict[str, Any], tmp_path: Path) -> None:
    assert replace(KEY, **change).folder(tmp_path) != KEY.folder(tmp_path)


class Killed(BaseException):
    """What a signal raises in the middle of the work."""


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield FEATURES[:4], LABELS[:4]
        raise Killed

    with pytest.raises(Killed):
        ensure_cache(KEY, tmp_path, interrupted)
    assert [path for path in (tmp_path / "embeddings").iterdir() if path.is_dir()] == []
    ensure_cache(KEY, tmp_path, batches)


def write_slowly(cache_dir: Path, started: Any) -> None:
    def slow() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield FEATURES[:4], LABELS[:4]
        started.set()
        time.sleep(60)

    ensure_cache(KEY, cache_dir, slow)


def test_a_killed_process_leaves_no_cache_and_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=write_slowly, args=(tmp_path, started))
    process.start()
    assert started.wait(30)
    process.kill()
    process.join()
    stale = [path for path in (tmp_path / "embeddings").iterdir() if path.is_dir()]
    assert [".tmp-" in path.name for path in stale] == [True]
    folder = ensure_cache(KEY, tmp_path, batches)
    assert [path for path in (tmp_path / "embeddings").iterdir() if path.is_dir()] == [folder]
    assert np.array_equal(open_cache(folder, KEY)[1], LABELS)


def write_and_count(cache_dir: Path, barrier: Any, writes: Any) -> None:
    def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with writes.get_lock():
            writes.value += 1
        yield from batches()

    barrier.wait()
    ensure_cache(KEY, cache_dir, counted)


def test_of_two_processes_at_once_one_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, writes = context.Barrier(2), context.Value("i", 0)
    processes = [context.Process(target=write_and_count, args=(tmp_path, barrier, writes)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert writes.value == 1
    open_cache(KEY.folder(tmp_path), KEY, verify=True)


def truncate(folder: Path) -> None:
    (folder / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:-8])


def flip_one_bit(folder: Path) -> None:
    content = bytearray((folder / "features.npy").read_bytes())
    content[-3] ^= 1
    (folder / "features.npy").write_bytes(content)


def change_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"is incomplete: manifest.json is missing"),
        (lambda folder: (folder / "labels.npy").unlink(), r"is incomplete: labels.npy is missing"),
        (truncate, r"is damaged: features.npy has \d+ bytes instead of \d+"),
        (flip_one_bit, r"is damaged: the digest of features.npy differs from the manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"is damaged: manifest.json is no JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), r"was not written by fpe_lightning"),
        (lambda folder: change_manifest(folder, format="other"), r"was not written by fpe_lightning"),
        (lambda folder: change_manifest(folder, version=2), r"has format version 2, and this release reads version 1"),
        (
            lambda folder: change_manifest(folder, key={"encoder": "ViT"}),
            r"holds other data: it has encoder='ViT', and encoder='tiny/rows' was asked for",
        ),
    ],
)
def test_an_unusable_cache_is_named_with_what_to_do(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    folder = ensure_cache(KEY, tmp_path, batches)
    damage(folder)
    with pytest.raises(
        ValueError, match=rf"{folder} {message}.*; delete this folder and run again to encode the data\."
    ):
        ensure_cache(KEY, tmp_path, never)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[:, :3], r"embeddings of shape \(10, 3\) for 10 pictures of squares; 4 finite numbers"),
        (FEATURES * 1e6, r"embeddings of numbers that are not finite for 10 pictures"),
        (FEATURES * np.nan, r"embeddings of numbers that are not finite for 10 pictures"),
    ],
)
def test_embeddings_that_cannot_be_stored_are_refused(features: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ensure_cache(KEY, tmp_path, lambda: [(features, LABELS)])
    assert not KEY.folder(tmp_path).exists()


def test_too_few_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"squares has 10 pictures in train, but 4 were encoded"):
        ensure_cache(KEY, tmp_path, lambda: [(FEATURES[:4], LABELS[:4])])
    assert not KEY.folder(tmp_path).exists()


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FPE_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "fpe_lightning"
    monkeypatch.setenv("FPE_CACHE", str(tmp_path / "elsewhere"))
    assert default_cache_dir() == tmp_path / "elsewhere"


@pytest.mark.parametrize("name", ["", "features.npy", "labels.npy", "manifest.json"])
def test_what_every_user_can_change_is_refused(name: str, tmp_path: Path) -> None:
    folder = ensure_cache(KEY, tmp_path, batches)
    (folder / name).chmod(0o777)
    with pytest.raises(ValueError, match="can be changed by every user of this machine"):
        open_cache(folder, KEY)
