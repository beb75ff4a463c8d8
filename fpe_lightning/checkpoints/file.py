"""Tell a whole checkpoint file from a broken one before anything is built from it."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_checkpoint_file(path: str | Path) -> None:
    """Refuse a file that torch cannot have written whole; nothing is unpickled.

    A checkpoint is a zip archive whose table of contents comes last, so a file that was cut off has none.

    Args:
        path: A file, or a directory of a sharded checkpoint, which is left to its reader.

    Raises:
        ValueError: If there is no such file, or it is cut off, damaged or something else.

    Example:
        >>> check_checkpoint_file("no/such/file.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: There is no checkpoint at no/such/file.ckpt; check the path.
    """
    path = Path(path)
    if path.is_dir():
        return
    if not path.exists():
        raise ValueError(f"There is no checkpoint at {path}; check the path.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint, or was cut off while it was written; resume from an earlier one.")
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{path} is damaged: {damaged} in it does not match its checksum; use another checkpoint.")
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise ValueError(f"{path} is a zip archive, but no checkpoint that torch wrote; check the path.")
