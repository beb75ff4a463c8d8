"""A virtual environment with the core dependencies alone, made in a second: links to what is installed here."""

from __future__ import annotations

import sys
import venv
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
TOML = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def core() -> dict[str, Distribution]:
    """Distributions that the core dependencies need, theirs included, by name."""
    project = TOML.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(each) for each in project["dependencies"]]
    while todo:
        needed = todo.pop()
        key = (canonicalize_name(needed.name), frozenset(needed.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = distribution(needed.name)
        except PackageNotFoundError:  # a wheel of another build of torch is not here
            continue
        for each in map(Requirement, found[key[0]].requires or ()):
            extras = needed.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": name}) for name in extras):
                todo.append(each)
    return found


def create(folder: Path) -> Path:
    """Make the environment, with this checkout on its path as an editable install has it; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for each in core().values():
        for file in each.files or ():
            top = file.parts[0]
            source = Path(str(each.locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "fpe_lightning.pth").write_text(f"{ROOT}\n")
    return folder / "bin/python"
