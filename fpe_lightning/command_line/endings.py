"""How a command ends: with one sentence and code 2 for bad input, and with 130 or 143 for a signal."""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

FLAG = "--traceback"
VARIABLE = "FPE_TRACEBACK"
"""The environment variable that does the same for every command."""

BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
"""Codes that schedulers and shells know: the last two are 128 and the number of the signal."""

LONGEST = 500
"""Characters of a sentence; libraries write pages."""

SPEAKING = (ValueError, TypeError, RuntimeError, OSError, ImportError)
"""Errors whose messages are sentences; any other is named by its type and its place."""


def end(command: Callable[[list[str]], object], words: Sequence[str]) -> int:
    """Run a command to its end.

    Args:
        command: Takes the words of the command line, without ``--traceback``.
        words: The words of the command line.

    Returns:
        The exit code: 0; 2 after an error, which one sentence on stderr tells; 130 after SIGINT and 143 after SIGTERM,
        also where something in between turned the signal into another code. With ``--traceback`` among the words, or
        ``FPE_TRACEBACK=1`` in the environment, the traceback follows the sentence.

    Example:
        >>> end(lambda words: None, ["fit"])
        0
    """
    if FLAG in words:
        os.environ[VARIABLE] = "1"  # processes that this one starts inherit it
    try:
        command([word for word in words if word != FLAG])
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return _code(stop)
    except Exception as error:
        sys.stderr.write(f"error: {sentence(error)}\n")
        if wants_traceback():
            traceback.print_exc()
        return BAD_INPUT
    return 0


def wants_traceback() -> bool:
    """Whether the environment asks for tracebacks."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def sentence(error: BaseException) -> str:
    """What an error says, on one line.

    Example:
        >>> sentence(FileExistsError(17, "File exists", "logs"))
        '`logs` cannot be used: File exists.'
        >>> sentence(KeyError("x"))
        "KeyError: 'x' (`--traceback` shows where)."
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"`{error.filename}` cannot be used: {error.strerror}."
    if isinstance(error, pickle.UnpicklingError):
        return (
            "The file holds more than plain types and tensors, and code in it could run: take another, or load it by "
            "`--weights_only=false` if you trust it."
        )
    text = textwrap.shorten(str(error), LONGEST, placeholder=" ...")
    if isinstance(error, SPEAKING) and text:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return (
        f"{type(error).__name__}{place}: {text} (`{FLAG}` shows where)." if text else f"{type(error).__name__}{place}."
    )


def _code(stop: SystemExit) -> int:
    """The code of a process that asked to stop; Lightning ends with 0 after SIGTERM, and with 1 after SIGINT."""
    if type(stop).__name__ == "SIGTERMException":
        return TERMINATED
    if isinstance(stop.__context__, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(stop.code, str):
        sys.stderr.write(f"error: {stop.code}\n")
        return BAD_INPUT
    return stop.code or 0
