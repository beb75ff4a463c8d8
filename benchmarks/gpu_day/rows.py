"""The rows of the report: one for each thing that was tried, also where it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from fpe_lightning.sparse.semi_structured.kernels import backend_of, no_kernel

OK, REPLACED, REFUSED = "ok", "replaced", "REFUSED"


@dataclass(frozen=True)
class Row:
    """One thing that was tried.

    Attributes:
        step: The part of the day, such as ``"pack"``.
        what: The model, the layout, the dtype.
        kernel: The kernel that ran, or was asked to.
        status: ``"ok"``, ``"replaced"`` (something else ran in place of the kernel, on purpose) or ``"REFUSED"``.
        note: Figures, or the reason.
    """

    step: str
    what: str
    kernel: str
    status: str
    note: str


def kernel_on(device: torch.device) -> tuple[str, str]:
    """The 2:4 kernel that a device runs and its status.

    Example:
        >>> kernel_on(torch.device("cpu"))
        ('dense product in place of 2:4 (a cpu has none)', 'replaced')
    """
    backend = backend_of(device)
    if backend is not None:
        return f"2:4, {backend}", OK
    reason = no_kernel(device) or "unknown reason"
    # A GPU was rented for its kernels: without them the day has failed.
    return (
        (f"2:4: {reason}", REFUSED)
        if device.type == "cuda"
        else (f"dense product in place of 2:4 ({reason})", REPLACED)
    )


def tried(step: str, what: str, kernel: tuple[str, str], work: Callable[[], str]) -> Row:
    """Run something; an exception becomes a row that names the kernel and the reason.

    Example:
        >>> tried("pack", "bf16", ("2:4, cutlass", "ok"), lambda: str(1 / 0)).note
        'ZeroDivisionError: division by zero'
    """
    name, status = kernel
    try:
        note = work()
    except Exception as error:  # a kernel may raise anything; the rest of the day goes on
        return Row(step, what, name, REFUSED, reason_of(error))
    return Row(step, what, name, status, note)


def reason_of(error: Exception) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table.

    Example:
        >>> print(markdown([Row("pack", "bf16", "2:4, cutlass", "ok", "9/16 of the bytes")]))
        | step | what | kernel | status | result |
        |---|---|---|---|---|
        | pack | bf16 | 2:4, cutlass | ok | 9/16 of the bytes |
    """
    cells = [(row.step, row.what, row.kernel, row.status, row.note.replace("|", "/")) for row in rows]
    return table(("step", "what", "kernel", "status", "result"), cells)


def table(heading: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *cells]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text.replace("| --- | ", "|---|").replace("--- | ", "---|").replace("--- |", "---|")
