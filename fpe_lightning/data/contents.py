"""Digests of the contents of many files, computed once for each state of a file.

A digest is remembered by the file's path, size, time of change and inode, next to the caches. A file that was changed
in place, replaced or restored differs in one of them and is read again. So is one that changed within the last two
seconds before it was read, as a clock may not tell two changes apart that follow each other so closely.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fpe_lightning.paths import default_cache_dir

UNSURE = 2_000_000_000
"""Nanoseconds; what changed so shortly before it was read is not remembered."""

PART = 256
"""Files that a thread takes at a time."""

State = list[int]
Known = dict[str, tuple[State, str]]


def digest_files(
    paths: Sequence[Path], folder: Path, compute: Callable[[Path], str] | None = None, name: str = "contents"
) -> list[str]:
    """Compute a digest of each of some files, or remember it.

    Args:
        paths: The files.
        folder: What the digests are remembered under.
        compute: What to compute of a file; None takes 128 bits of BLAKE2b over its bytes, or nothing where it cannot be
            read.
        name: Tells apart what different functions computed.

    Returns:
        The digests, in the order of ``paths``.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a").write_text("x")
        ...     digest_files([Path(folder, "a")], Path(folder))
        ['442a44457137672b3218c1007dc8f76a']
    """
    memory = default_cache_dir() / name / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]}.json"
    known, started = _read(memory), time.time_ns()
    states = [_state(path) for path in paths]
    keys = [str(path) for path in paths]
    missing = [n for n, key in enumerate(keys) if key not in known or known[key][0] != states[n]]
    if not missing:
        return [known[key][1] for key in keys]
    # Reading and hashing release the interpreter, so threads use all cores and wait for a disk together.
    answer = compute or _digest
    parts = [missing[start : start + PART] for start in range(0, len(missing), PART)]
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        answers = pool.map(lambda part: [(n, answer(paths[n])) for n in part], parts)
        computed = dict(each for part in answers for each in part)
    digests = [computed[n] if n in computed else known[key][1] for n, key in enumerate(keys)]
    sure = [n for n, state in enumerate(states) if state and max(state[1:3]) < started - UNSURE]
    _write(memory, {**known, **{keys[n]: (states[n], digests[n]) for n in sure}})
    return digests


def _state(path: Path) -> State:
    try:
        found = path.stat()
    except OSError:  # a link to nowhere
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return ""


def _read(memory: Path) -> Known:
    """What is remembered; nothing where the file is missing, damaged or of another form."""
    try:
        found = json.loads(memory.read_text())
        return {key: (list(map(int, state)), str(digest)) for key, (state, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(memory: Path, known: Known) -> None:
    """Replace the file as a whole; where that is impossible, files are read again next time."""
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False) as file:
            json.dump(known, file)
        os.replace(file.name, memory)
