"""Parts of the package that need more than the core: one sentence tells which extra brings what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal

Extra = Literal["template", "studies", "field", "bench", "ray", "sweep", "tables", "hub", "docs", "test"]
"""Names of the optional dependencies in ``pyproject.toml``."""


@contextmanager
def extra(name: Extra, what: str) -> Iterator[None]:
    """Turn a failed import inside the block into one sentence that names the extra.

    Args:
        name: The extra that brings what the block imports.
        what: What needs it, as the subject of the sentence.

    Raises:
        ModuleNotFoundError: If the block imports a module that is not installed.

    Example:
        >>> with extra("sweep", "`fpe sweep`"):
        ...     import no_such_library
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: `fpe sweep` needs no_such_library, which is not installed: pip install ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        # A module of this package that does not exist is a fault of ours, and no extra brings it.
        if missing in ("", "fpe_lightning") or "pip install" in str(error):
            raise
        raise _missing(name, what, missing) from error


def require(name: Extra, what: str, *modules: str) -> None:
    """Refuse before a run starts what would fail in it, without the time that an import takes.

    Args:
        name: The extra that brings the modules.
        what: What needs them, as the subject of the sentence.
        modules: Names of modules.

    Raises:
        ModuleNotFoundError: If one of the modules is not installed.

    Example:
        >>> require("template", "`RunSummary`", "rich")
    """
    for module in modules:
        if find_spec(module) is None:
            raise _missing(name, what, module)


def _missing(name: Extra, what: str, module: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f'{what} needs {module}, which is not installed: pip install "fpe_lightning[{name}]"', name=module
    )
