"""The error of a study that cannot run, and how a command reports it."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console


class StudyError(ValueError):
    """A study, arm, grid or folder that cannot be used; the message is one sentence for the command line."""


def exit_code(command: Callable[[], object], console: Console) -> int:
    """Run a command; bad input is answered with its sentence.

    Args:
        command: The command.
        console: Where to print.

    Returns:
        0, or 2 after bad input.

    Example:
        >>> exit_code(lambda: None, Console())
        0
    """
    try:
        command()
    except StudyError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    return 0
