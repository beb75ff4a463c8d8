"""Embeddings on disk: encoded once, mapped into memory afterwards, and checked before use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

FORMAT = "fpe_lightning.embeddings"
VERSION = 1
FEATURES, LABELS, MANIFEST = "features.npy", "labels.npy", "manifest.json"


@dataclass(frozen=True)
class CacheKey:
    """Everything that decides the content of a cache; each key has its own folder.

    Attributes:
        encoder: Name of the encoder.
        weights: Digest of its weights.
        preprocessing: Steps that change a picture before the encoder and an embedding after it.
        dataset: Name of the data set.
        fingerprint: Digest of the pictures and labels of the split.
        split: ``"train"``, ``"val"`` or ``"test"``.
        count: Number of pictures.
        dim: Length of an embedding.
        dtype: ``"float16"`` or ``"float32"``.
        classes: Name of each class number.
    """

    encoder: str
    weights: str
    preprocessing: str
    dataset: str
    fingerprint: str
    split: str
    count: int
    dim: int
    dtype: str
    classes: tuple[str, ...]

    def folder(self, cache_dir: Path) -> Path:
        """Return the folder of this key: readable names, then a hash that differs between all keys."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        names = f"{self.dataset}-{self.split}-{self.encoder}".replace("/", "_").replace(":", "_")
        return cache_dir / "embeddings" / f"{names}-{digest[:16]}"


def ensure_cache(key: CacheKey, cache_dir: Path, batches: Callable[[], Iterable[tuple[Any, Any]]]) -> Path:
    """Check the cache of a key, and write it if it is missing.

    The arrays go to a temporary folder next to the cache, which is renamed after everything is on the disk. So an
    interrupted run leaves no folder of the final name. If several processes call this, one writes and the others wait.

    Args:
        key: The content of the cache.
        cache_dir: Parent of all caches.
        batches: Called if the cache is missing; yields ``(n, dim)`` features and ``(n,)`` labels.

    Returns:
        The folder of the cache.

    Raises:
        ValueError: If an existing cache is damaged or has another content, or the batches do not fit the key.
    """
    folder = key.folder(cache_dir)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One process encodes; the others wait for the lock and find the folder.
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log.warning("Another process is encoding into %s; waiting until it is done.", folder)
            lock.acquire()
        try:
            if not folder.exists():
                _write(key, folder, batches())
        finally:
            lock.release()
    open_cache(folder, key, verify=True)
    return folder


def open_cache(folder: Path, key: CacheKey, verify: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Map the arrays of a cache into memory.

    Args:
        folder: Folder of the cache.
        key: Expected content.
        verify: Whether to read the whole cache and compare its digest; otherwise only names, sizes and types are
            compared.

    Returns:
        Features ``(count, dim)`` and labels ``(count,)`` int64; writing to them changes only the copy in memory.

    Raises:
        ValueError: If the cache is incomplete, damaged, has another content, or can be changed by every user; the
            message names the folder.
    """
    _check_owner(folder)
    manifest = _read_manifest(folder)
    # Through JSON, because the manifest has lists for tuples.
    wanted = json.loads(json.dumps(asdict(key)))
    if differs := [name for name in wanted if manifest["key"].get(name) != wanted[name]]:
        found, asked = (f"{differs[0]}={str(part.get(differs[0]))[:80]!r}" for part in (manifest["key"], wanted))
        raise _unusable(folder, f"holds other data: it has {found}, and {asked} was asked for")
    arrays = []
    for name, shape, dtype in ((FEATURES, (key.count, key.dim), key.dtype), (LABELS, (key.count,), "int64")):
        path, expected = folder / name, manifest["files"].get(name, {})
        if not path.is_file():
            raise _unusable(folder, f"is incomplete: {name} is missing")
        # Cheap checks come first: size, digest if asked, then the header of the array.
        if (size := path.stat().st_size) != expected.get("bytes"):
            raise _unusable(folder, f"is damaged: {name} has {size} bytes instead of {expected.get('bytes')}")
        if verify and _digest(path) != expected.get("sha256"):
            raise _unusable(folder, f"is damaged: the digest of {name} differs from the manifest")
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except ValueError as error:
            raise _unusable(folder, f"is damaged: {name} is no array ({error})") from error
        if array.shape != shape or array.dtype != dtype:
            raise _unusable(folder, f"is damaged: {name} holds {array.dtype} {array.shape} instead of {dtype} {shape}")
        arrays.append(array)
    return arrays[0], arrays[1]


def _unusable(folder: Path, why: str) -> ValueError:
    return ValueError(f"The embedding cache {folder} {why}; delete this folder and run again to encode the data.")


def _check_owner(folder: Path) -> None:
    """Refuse what another user could have written; numbers run no code, but they decide what a model learns.

    A cache may be shared by a group whose members trust each other, and by any number of readers.
    """
    for path in (folder, folder / FEATURES, folder / LABELS, folder / MANIFEST):
        if not path.exists():
            continue
        found = path.stat()
        if found.st_mode & stat.S_IWOTH:
            raise _unusable(
                folder,
                f"can be changed by every user of this machine ({path.name or folder} has mode "
                f"{stat.filemode(found.st_mode)}), so nobody knows who wrote it",
            )
        if hasattr(os, "getuid") and found.st_uid not in (0, os.getuid()):
            log.warning("The embedding cache %s belongs to another user, who can change it.", folder)
            return


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise _unusable(folder, f"is incomplete: {MANIFEST} is missing") from error
    except ValueError as error:
        raise _unusable(folder, f"is damaged: {MANIFEST} is no JSON") from error
    parts = manifest if isinstance(manifest, dict) else {}
    if parts.get("format") != FORMAT or not all(isinstance(parts.get(part), dict) for part in ("key", "files")):
        raise _unusable(folder, f"was not written by fpe_lightning: {MANIFEST} does not say format={FORMAT!r}")
    if parts.get("version") != VERSION:
        raise _unusable(folder, f"has format version {parts.get('version')}, and this release reads version {VERSION}")
    return parts


def _write(key: CacheKey, folder: Path, batches: Iterable[tuple[Any, Any]]) -> None:
    for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)  # this process holds the lock, so the writer of this folder is dead
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        # Arrays first, then the manifest with their digests, then the rename: it commits the cache.
        _write_arrays(key, temporary, batches)
        files = {
            name: {"bytes": (temporary / name).stat().st_size, "sha256": _digest(temporary / name)}
            for name in (FEATURES, LABELS)
        }
        manifest = {"format": FORMAT, "version": VERSION, "key": asdict(key), "files": files}
        with open(temporary / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)
            _to_disk(file)
        for name in (FEATURES, LABELS, MANIFEST):
            (temporary / name).chmod(0o644)
        temporary.chmod(0o755)  # mkdtemp allows one user only, but users may share a cache, to read it
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(key: CacheKey, folder: Path, batches: Iterable[tuple[Any, Any]]) -> None:
    """Append batch after batch, so that memory holds one batch and a full disk is an ordinary error."""
    written = 0
    with open(folder / FEATURES, "wb") as features_file, open(folder / LABELS, "wb") as labels_file:
        _write_header(features_file, (key.count, key.dim), key.dtype)
        _write_header(labels_file, (key.count,), "int64")
        for features, labels in batches:
            with np.errstate(over="ignore"):  # an overflow in float16 is refused below, with a message
                rows = np.ascontiguousarray(features, dtype=key.dtype)
            if rows.shape != (len(labels), key.dim) or not np.isfinite(rows).all():
                found = f"shape {rows.shape}" if rows.shape != (len(labels), key.dim) else "numbers that are not finite"
                raise ValueError(
                    f"{key.encoder} gave embeddings of {found} for {len(labels)} pictures of {key.dataset}; {key.dim} "
                    f"finite numbers of type {key.dtype} were expected for each."
                )
            features_file.write(rows.data)
            labels_file.write(np.ascontiguousarray(labels, dtype=np.int64).data)
            written += len(rows)
        if written != key.count:
            raise ValueError(f"{key.dataset} has {key.count} pictures in {key.split}, but {written} were encoded.")
        _to_disk(features_file)
        _to_disk(labels_file)


def _write_header(file: Any, shape: tuple[int, ...], dtype: str) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
