"""One row of the results of ``benchmarks.coverage``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """The results of one model; fields of phases that were not reached are empty.

    Attributes:
        name: ``"kind/model"``.
        status: ``"ok"``, ``"partly"`` (all checks pass, but ``expand`` refuses some sites with a reason),
            ``"no site"``, ``"failed"``, ``"memory"``, ``"time"``, ``"crash"`` or ``"skipped"``.
        size: Edge of the image in pixels, or length of the text.
        parameters: Number of parameters, in millions.
        exist: Hidden widths counted by hand; None outside the sample.
        found: Sites that ``find_sites`` returns.
        proven: Found sites whose duplication leaves the outputs equal.
        single: Found sites whose units one weight computes.
        single_proven: Such sites that are proven.
        error: Largest relative output difference of the joint proof.
        expanded: Sites that ``expand`` splits in two.
        trained: Whether forward, backward and an optimizer step ran with finite numbers.
        nonzeros_equal: Whether the number of non-zeros is the same before, after the split and after the step.
        round_trip: Whether the state_dict is bit-identical in a fresh model, and so are its outputs.
        seconds: Wall time of everything.
        cpu: Processor seconds of everything, independent of other jobs on the machine.
        find_seconds: Wall time of ``find_sites``.
        prove_seconds: Wall time of the proof.
        memory: Peak resident memory, MiB.
        refusals: Reasons with the number of widths, most frequent first.
        left_out: Reasons of ``expand`` to refuse sites, with their numbers.
        note: The first error.
    """

    name: str
    status: str = "failed"
    size: int | None = None
    parameters: float | None = None
    exist: int | None = None
    found: int | None = None
    proven: int | None = None
    single: int | None = None
    single_proven: int | None = None
    error: float | None = None
    expanded: int | None = None
    trained: bool | None = None
    nonzeros_equal: bool | None = None
    round_trip: bool | None = None
    seconds: float | None = None
    cpu: float | None = None
    find_seconds: float | None = None
    prove_seconds: float | None = None
    memory: int | None = None
    refusals: str = ""
    left_out: str = ""
    note: str = ""
