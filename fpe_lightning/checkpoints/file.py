"""Tell a whole checkpoint file from a broken one before anything is built from it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Literal

Kind = Literal["zip", "legacy", "safetensors", "folder"]
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files begin that torch wrote before 1.6, or with ``_use_new_zipfile_serialization=False``."""


def check_checkpoint_file(path: str | Path, safetensors: bool = False) -> Kind:
    """Refuse a file that was not written whole; nothing is unpickled.

    A checkpoint is a zip archive whose table of contents comes last, so a file that was cut off has none. A file of
    safetensors says at its beginning how long it is. Of a legacy file of torch only the beginning is looked at.

    Args:
        path: A file, or a directory of a sharded checkpoint, which is left to its reader.
        safetensors: Whether a file of safetensors will do; a Trainer does not read them.

    Returns:
        The kind of the file.

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
        return "folder"
    if not path.exists():
        raise ValueError(f"There is no checkpoint at {path}; check the path.")
    with path.open("rb") as file:
        begin = file.read(len(LEGACY))
    if begin[8:9] == b"{" or path.suffix == ".safetensors":
        if not safetensors:
            raise ValueError(
                f"{path} is a file of safetensors, which holds weights alone; resume from a checkpoint that a Trainer "
                "wrote, or read it with `fpe.restore_structure_from_file`."
            )
        _check_safetensors(path)
        return "safetensors"
    if begin == LEGACY:
        return "legacy"
    _check_zip(path)
    return "zip"


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint, or was cut off while it was written; resume from an earlier one.")
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{path} is damaged: {damaged} in it does not match its checksum; use another checkpoint.")
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise ValueError(f"{path} is a zip archive, but no checkpoint that torch wrote; check the path.")


def _check_safetensors(path: Path) -> None:
    """Compare the length of a file with the one in its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size - 8 else b""
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        end = size
    if 8 + length + end != size:
        raise ValueError(
            f"{path} is no file of safetensors, or was cut off while it was written; use another checkpoint."
        )
