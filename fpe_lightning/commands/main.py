"""``fpe WORD ...``: find the command of a word, load it, and run it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import fpe_lightning

TRAINING = ("fit", "validate", "test", "predict")
"""Words that LightningCLI takes; ``python train.py`` takes the same."""
COMMANDS = {
    "fit": ("fpe_lightning.commands.train", "train a network that a config describes, then test its best weights"),
    "validate": ("fpe_lightning.commands.train", "evaluate a checkpoint on the validation data"),
    "test": ("fpe_lightning.commands.train", "evaluate a checkpoint on the test data"),
    "predict": ("fpe_lightning.commands.train", "compute the outputs of a checkpoint"),
    "sites": ("fpe_lightning.commands.sites", "list the widths of a model that can expand, and why others cannot"),
    "expand-checkpoint": ("fpe_lightning.checkpoints.__main__", "split the neurons of a checkpoint, in a new file"),
    "new": ("fpe_lightning.commands.new", "write a project of your own to start from"),
    "sweep": ("fpe_lightning.commands.sweep", "search a grid of arguments, in several processes at once"),
}
"""Words, with the module whose ``main`` takes the words after it, and one line of help."""


def main(args: Sequence[str] | None = None) -> int | str | None:
    """Run ``fpe``.

    Args:
        args: The words after ``fpe``; None takes those of the process.

    Returns:
        An exit code, or a sentence for the error stream, as ``sys.exit`` takes them.

    Example:
        >>> main(["--version"]) == 0
        0.1.0
        True
        >>> main(["fti"])
        'error: Unknown command `fti`. Did you mean `fit`? `fpe --help` lists all.'
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(fpe_lightning.__version__)
        return 0
    if words[0] not in COMMANDS:
        nearest = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
        return f"error: Unknown command `{words[0]}`.{hint} `fpe --help` lists all."
    try:
        command: Callable[[list[str]], int | str | None] = import_module(COMMANDS[words[0]][0]).main
        return command(words if words[0] in TRAINING else words[1:])
    except ModuleNotFoundError as error:
        if "pip install" not in str(error):
            raise
        return f"error: {error}"


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {word:<{width}}{line}" for word, (_, line) in COMMANDS.items()]
    return "\n".join(["usage: fpe COMMAND [--help] ...", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
