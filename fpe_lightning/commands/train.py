"""``fpe fit``, and the other words of ``python train.py``, with the configs of the package where yours are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import fpe_lightning

PACKAGE = Path(fpe_lightning.__file__).parent


def main(words: list[str]) -> None:
    """Run LightningCLI.

    Args:
        words: A subcommand and its arguments.
    """
    from fpe_lightning.cli import CLI

    sys.path.insert(0, str(Path.cwd()))  # classes of the project, as with `python train.py`
    sys.argv[1:] = shipped(words)
    CLI()


def shipped(words: list[str]) -> list[str]:
    """Words in which ``configs/NAME.yaml`` means the package's own file, unless the working directory has one.

    Example:
        >>> words = shipped(["fit", "--config", "configs/boolean.yaml", "--config=mine.yaml"])
        >>> words[0], Path(words[2]).is_file(), words[3]
        ('fit', True, '--config=mine.yaml')
    """
    return [_shipped(word) for word in words]


def _shipped(word: str) -> str:
    option, equals, path = word.rpartition("=")
    if not path.startswith("configs/") or Path(path).exists():
        return word
    # An installed package holds the configs, and a checkout has them next to it.
    found = next((base / path for base in (PACKAGE, PACKAGE.parent) if (base / path).is_file()), path)
    return f"{option}{equals}{found}"
