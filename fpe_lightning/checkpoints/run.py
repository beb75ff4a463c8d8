"""Run a program as it is, and let it load expanded checkpoints: ``python -m fpe_lightning.checkpoints.run eval.py``.

``python -m fpe_lightning.checkpoints.run -m package ...`` runs a module, as ``python -m package`` would.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from fpe_lightning.checkpoints.loaders import expanded_checkpoints


def main(args: Sequence[str]) -> None:
    """Run a file, or a module after ``-m``, with the arguments that follow it.

    Args:
        args: The words that would follow ``python``.

    Raises:
        SystemExit: If there is nothing to run, or the program ends so.

    Example:
        >>> main([])
        Traceback (most recent call last):
        ...
        SystemExit: usage: python -m fpe_lightning.checkpoints.run (FILE | -m MODULE) [ARGUMENTS ...]
    """
    module = args[1] if len(args) > 1 and args[0] == "-m" else None
    if not args or (args[0].startswith("-") and module is None):
        raise SystemExit("usage: python -m fpe_lightning.checkpoints.run (FILE | -m MODULE) [ARGUMENTS ...]")
    if module is None and not Path(args[0]).exists():
        raise SystemExit(f"There is no file {args[0]} to run; name a module after `-m`.")
    sys.argv = list(args[1:] if module else args)
    with expanded_checkpoints(always=True):
        if module:
            sys.path[0] = ""  # as `python -m` has it
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(args[0]).parent.absolute())
            runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
