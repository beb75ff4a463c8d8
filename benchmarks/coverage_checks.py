"""What ``benchmarks.coverage`` asks of one model."""

from __future__ import annotations

import copy
import gc
import re
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks.coverage_counts import sites_that_exist
from benchmarks.coverage_zoo import Entry, parameters
from fpe_lightning.checkpoints import load_expanded_state_dict
from fpe_lightning.expansion import expand
from fpe_lightning.sites import Site, find_sites
from fpe_lightning.sites.tracing.forward import Inputs, tensors_in
from fpe_lightning.sparse import count_nonzeros
from fpe_lightning.sparse.model_masks import check_masks
from tests.support.proof import prove_sites

RESERVE = 2.0
"""GiB of the process beside the model: libraries, and the address space that their threads reserve."""


@dataclass(frozen=True)
class Row:
    """What is known of one model; a phase that was not reached leaves its fields empty.

    Attributes:
        name: ``"kind/model"``.
        status: ``"ok"``, ``"partly"`` (all is right, but ``expand`` refuses some sites with a reason), ``"no site"``,
            ``"failed"``, ``"memory"``, ``"time"``, ``"crash"`` or ``"skipped"``.
        size: Edge of the image in pixels, or length of the text.
        parameters: Millions.
        exist: Hidden widths counted by hand; None outside the sample.
        found: Sites that ``find_sites`` returns.
        proven: Those whose duplication leaves the outputs equal.
        single: Found sites whose units one weight computes.
        single_proven: Those of them that are proven.
        error: Largest relative output difference of the joint proof.
        expanded: Sites that ``expand`` splits in two.
        trained: Whether forward, backward and an optimizer step ran with finite numbers.
        nonzeros_equal: Whether the number of non-zeros is the same before, after the split and after the step.
        round_trip: Whether the state_dict is bit-identical in a fresh model, and so are its outputs.
        seconds: Wall time of everything.
        cpu: Processor seconds of everything, which other jobs on the machine do not lengthen.
        find_seconds: Wall time of ``find_sites``.
        prove_seconds: Wall time of the proof.
        memory: Peak resident memory, MiB.
        refusals: Reasons with the number of widths, most frequent first.
        left_out: Reasons for which ``expand`` refuses sites, with their numbers.
        note: What went wrong.
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


def measure(entry: Entry, report: Callable[[Row], None]) -> None:
    """Run every check on one model.

    Args:
        entry: The model.
        report: Called with what is known after each phase, so that a process that dies has said how far it came.
    """
    begun, cpu, row = time.perf_counter(), time.process_time(), Row(entry.name)

    def tell(**news: Any) -> None:
        nonlocal row
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        times: dict[str, Any] = {
            "seconds": round(time.perf_counter() - begun, 1),
            "cpu": round(time.process_time() - cpu, 1),
        }
        row = replace(row, **times, memory=peak, **news)
        report(row)

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        _measure(entry, tell)
        right = row.proven == row.found and row.trained and row.nonzeros_equal and row.round_trip
        complete = "ok" if row.expanded == row.found else "partly"
        tell(status="no site" if row.found == 0 else complete if right else "failed")
    except Exception as error:  # one bad model must not end the run
        tell(status="memory" if out_of_memory(error) else "failed", note=f"{row.note} {sentence(error)}".strip())


def _measure(entry: Entry, tell: Callable[..., None]) -> None:
    model, inputs, size = entry.build()
    model.train()
    tell(size=size, parameters=round(parameters(model), 2), exist=sites_that_exist(entry.name, model))
    clock = time.perf_counter()
    sites, refusals = find_sites(model, inputs, explain=True)
    tell(
        found=len(sites),
        single=len(single(sites)),
        find_seconds=round(time.perf_counter() - clock, 2),
        refusals=counted(refusal.reason for refusal in refusals),
    )
    if not sites:
        return
    clock = time.perf_counter()
    proven, error, note = prove(model, sites, inputs)
    times = {"prove_seconds": round(time.perf_counter() - clock, 2)}
    tell(proven=len(proven), single_proven=len(single(proven)), error=error, note=note, **times)
    gc.collect()
    fresh = _blank(model)
    before = count_nonzeros(model)
    tell(expanded=0, nonzeros_equal=False)  # what counts if this raises
    expanded, left_out = split(model, sites)
    tell(expanded=len(expanded), nonzeros_equal=count_nonzeros(model) == before, left_out=counted(left_out))
    trained = train_step(model, inputs)
    check_masks(model)
    tell(trained=trained, nonzeros_equal=count_nonzeros(model) == before)
    tell(round_trip=same_after_loading(model, fresh, inputs))


def single(sites: Iterable[Site]) -> list[Site]:
    """The sites whose units one weight computes."""
    return [site for site in sites if len({producer.parameter for producer in site.producers}) == 1]


def prove(model: nn.Module, sites: Sequence[Site], inputs: Any) -> tuple[list[Site], float | None, str]:
    """Prove sites jointly and, where that fails or does not fit in memory, in halves.

    Returns:
        The sites that are proven, the largest relative error among them, and what the first failure was.
    """
    note = ""
    try:
        proof = prove_sites(model, sites, inputs)
        if proof.holds:
            return list(sites), proof.error, ""
        note = f"not proven: {sites[0].name}: error {proof.error:.1e}, power {proof.power:.1e}."
    except Exception as error:  # whatever the widened forward raises, and no memory
        if len(sites) == 1 and out_of_memory(error):
            raise
        note = f"not proven: {sites[0].name}: {sentence(error)}."
    if len(sites) == 1:
        return [], None, note
    gc.collect()
    halves = [prove(model, half, inputs) for half in (sites[: len(sites) // 2], sites[len(sites) // 2 :])]
    errors = [error for _, error, _ in halves if error is not None]
    good = [site for proven, _, _ in halves for site in proven]
    return good, max(errors, default=None), next((note for _, _, note in halves if note), "")


def split(model: nn.Module, sites: Sequence[Site]) -> tuple[list[Site], list[str]]:
    """Expand all sites by two, without those that ``expand`` refuses for their few inputs.

    Returns:
        The sites that were split, and why the others were not.
    """
    chosen, reasons = list(sites), []
    few = [site for site in sites if site.fan_in < 2]  # refused at once, where all together would come to it late
    while chosen:
        asked = [few.pop()] if few else chosen
        try:
            expand(model, fpe.Paper(alpha=2), sites=asked)
        except ValueError as error:
            named = re.search(r"asked for (\S+), whose|Splitting (\S+) by", str(error))
            if named is None:
                raise
            bad = named[1] or named[2]
            chosen = [site for site in chosen if site.name != bad]
            reason = re.sub(r"^Splitting .* have to go\. ", "copies need more room than there is: ", str(error))
            reasons.append(reason.replace(bad, "a site"))
        else:
            if asked is chosen:
                break
    return chosen, reasons


def counted(reasons: Iterable[str]) -> str:
    """Reasons with how often each was given, the most frequent ones.

    Example:
        >>> counted(["it has 3 inputs", "it has 2 inputs"])
        '2 x it has # inputs'
    """
    counts = Counter(kind_of(reason) for reason in reasons)
    return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common(4))


def train_step(model: nn.Module, inputs: Any) -> bool:
    """Forward, backward and one optimizer step in training mode; True if every number stays finite."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = torch.stack([output.float().square().mean() for output in _outputs(model, inputs)]).sum()
    loss.backward()
    used = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # images of a few pixels and two examples make for steep losses
    optimizer.step()
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in (loss, *used, *model.parameters()))
    optimizer.zero_grad()
    return bool(used) and finite


def same_after_loading(model: nn.Module, fresh: nn.Module, inputs: Any) -> bool:
    """Load into a model of the widths before the split; compare tensors and outputs bit by bit."""
    state = model.state_dict()
    load_expanded_state_dict(fresh, state)
    loaded = fresh.state_dict()
    if list(state) != list(loaded) or not all(torch.equal(state[key], loaded[key]) for key in state):
        return False
    with torch.no_grad():  # in training mode: statistics of one step are no normalisation, and outputs overflow
        pairs = zip(_outputs(model.train(), inputs), _outputs(fresh.train(), inputs), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


def _outputs(model: nn.Module, inputs: Any) -> Iterator[Tensor]:
    given = Inputs.of(inputs)
    torch.manual_seed(0)
    outputs = list(tensors_in(model(*given.args, **given.kwargs)))
    return (output for output in outputs if output.is_floating_point())


def _blank(model: nn.Module) -> nn.Module:
    """The same model with all parameters zero, so that nothing but loading can make it equal."""
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    return fresh


def kind_of(reason: str) -> str:
    """A refusal without the names and numbers of one model.

    Example:
        >>> kind_of("tied weights: a.weight and b.weight are one tensor")
        'tied weights: ... and ... are one tensor'
    """
    return re.sub(r"\d+", "#", re.sub(r"\b[\w]+(\.[\w]+)+", "...", reason))[:140]


def sentence(error: Exception) -> str:
    """An exception in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]


def out_of_memory(error: Exception) -> bool:
    """Whether a guarded process asked for more than it may have."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


@contextmanager
def memory_limit(gibibytes: float) -> Iterator[None]:
    """Let this process have no more than so much memory of its own; asking for more raises (Linux)."""
    old = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int((gibibytes + RESERVE) * 2**30), old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)
