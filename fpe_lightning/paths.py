"""The directory of files that the package can compute again."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def default_cache_dir() -> Path:
    """Return ``$FPE_CACHE``, or ``fpe_lightning`` in the user's cache directory (``~/.cache`` on Linux)."""
    if path := os.environ.get("FPE_CACHE"):
        return Path(path).expanduser()
    return user_cache_path("fpe_lightning", appauthor=False)
