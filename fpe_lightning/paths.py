"""The directory of files that the package can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return ``$FPE_CACHE``, or ``fpe_lightning`` in the user's cache directory (``~/.cache``)."""
    if path := os.environ.get("FPE_CACHE"):
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fpe_lightning"
