"""``fpe new my_project``: a small project that runs offline at once, for a user to change."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch

import fpe_lightning

SOURCE = Path(fpe_lightning.__file__).parent / "assets/project"
"""Files of the project. ``PROJECT`` stands for its name, ``.in`` is dropped, and ``git...`` gets a dot in front."""


def main(words: list[str]) -> int | str:
    """Write a project to start from: train.py, configs, a network, data, a callback, tests and CI.

    Args:
        words: The words after ``fpe new``.

    Returns:
        An exit code, or one sentence about a mistake.
    """
    parser = argparse.ArgumentParser(prog="fpe new", description=(main.__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write it; the last part names the project")
    folder: Path = parser.parse_args(words).folder
    try:
        files = write(folder)
    except ValueError as error:
        return f"error: {error}"
    print(f"{folder} holds {len(files)} files. Next:\n")
    print(f"  cd {folder}\n  python train.py fit --config configs/experiment/first.yaml\n  pytest")
    return 0


def write(folder: Path) -> list[Path]:
    """Write the project, all of it or nothing.

    Args:
        folder: A folder that does not exist yet, or is empty.

    Returns:
        Paths of the files, relative to the folder.

    Raises:
        ValueError: If the folder holds something, or its name can be no name of a Python package.

    Example:
        >>> write(Path("1st"))
        Traceback (most recent call last):
        ...
        ValueError: A project is named like a Python package, with letters, digits and `_`, found '1st'.
    """
    name = folder.absolute().name.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z]\w*", name, re.ASCII) or keyword.iskeyword(name):
        raise ValueError(
            f"A project is named like a Python package, with letters, digits and `_`, found {folder.name!r}."
        )
    if name in ("fpe_lightning", "tests", "configs", "data"):
        raise ValueError(f"The name {name!r} is taken inside of a project; choose another one.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
    try:
        _fill(draft, name)
        draft.chmod(0o755)
        os.replace(draft, folder)  # an empty folder is replaced
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _fill(draft: Path, name: str) -> None:
    for source in sorted(SOURCE.rglob("*.in")):
        relative = source.relative_to(SOURCE).as_posix().removesuffix(".in").replace("PROJECT", name)
        target = draft / (f".{relative}" if relative.startswith("git") else relative)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("PROJECT", name))
    (draft / "data").mkdir()
    (draft / "data/example.csv").write_text(_example())


def _example(rows: int = 900) -> str:
    """A CSV of three classes by eight features; the class depends on products of features."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=generator)
    scores = torch.stack([x[:, 0] * x[:, 1], x[:, 2] * x[:, 3], x[:, 4] * x[:, 5]], dim=1)
    words = [("red", "green", "blue")[number] for number in scores.argmax(1).tolist()]
    lines = [",".join([*(f"{value:.4f}" for value in row), word]) for row, word in zip(x.tolist(), words, strict=True)]
    return "\n".join([",".join([*(f"x{number}" for number in range(8)), "label"]), *lines]) + "\n"
