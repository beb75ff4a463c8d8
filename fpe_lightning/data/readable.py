"""Pictures in files that cannot be read: named by their path, or left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fpe_lightning.data.contents import digest_files

log = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What PIL raises of files that are cut off, damaged, too large or no pictures."""


def unreadable(path: str | Path, reason: str) -> str:
    """The sentence about a picture that cannot be read.

    Example:
        >>> unreadable("ant/1.png", "cannot identify image file 'ant/1.png'")[:63]
        'The picture ant/1.png cannot be read (cannot identify image fil'
    """
    why = " ".join(reason.split()).replace(f"'{path}'", "").strip(" .:")
    return (
        f"The picture {path} cannot be read ({why}): repair or remove it, or leave all such pictures out with "
        "`skip_unreadable=True`."
    )


def readable(paths: Sequence[Path], name: str) -> list[bool]:
    """Which pictures can be read; a warning says how many cannot.

    Args:
        paths: Files ``CLASS/PICTURE``, read once for each state of a file.
        name: What to call the pictures in the warning.

    Raises:
        ValueError: If none can be read.
    """
    answers = digest_files(paths, paths[0].parents[1], _decode, "readable")
    bad = [path for path, answer in zip(paths, answers, strict=True) if answer]
    if len(bad) == len(paths):
        raise ValueError(
            f"None of the {len(paths)} pictures of {name} can be read, such as {bad[0]}; check the folder."
        )
    if bad:
        some = ", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else "")
        log.warning("%d of %d pictures of %s cannot be read and are left out: %s.", len(bad), len(paths), name, some)
    return [not answer for answer in answers]


def _decode(path: Path) -> str:
    """Why a picture cannot be read; empty where it can."""
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except UNREADABLE as error:
        return str(error) or type(error).__name__
    return ""
