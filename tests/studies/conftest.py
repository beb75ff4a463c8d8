"""A study of a few seconds, shared by the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """
settings:
  S: {epochs: 6, split: 2, samples: 32}
  T: {epochs: 6, split: 3, switch: 3, lr_after: 0.01, samples: 32}
arms: {dense: Dense, random: Split, wide_sparse: WideSparse}
seeds: 3
block: 2
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The path of a config of 18 runs of 6 epochs."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path
