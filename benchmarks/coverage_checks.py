"""The checks of ``benchmarks.coverage`` on one model."""

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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from benchmarks.coverage_counts import sites_that_exist
from benchmarks.coverage_row import Row
from benchmarks.coverage_zoo import Entry, parameters
from fpe_lightning.checkpoints import load_expanded_state_dict
from fpe_lightning.expansion import expand
from fpe_lightning.sites import Site, find_sites
from fpe_lightning.sites.tracing.containers import tensors_in
from fpe_lightning.sites.tracing.forward import Inputs
from fpe_lightning.sparse import count_nonzeros
from fpe_lightning.sparse.model_masks import check_masks
from tests.support.proof import prove_sites

RESERVE = 2.0
"""GiB of the process besides the model: libraries, and the address space that their threads reserve."""


def measure(entry: Entry, report: Callable[[Row], None]) -> None:
    """Run every check on one model.

    Args:
        entry: The model.
        report: Called with the results after each phase, so that those of a process that dies are known.
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
    except Exception as error:  # one failing model must not end the run
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
    tell(expanded=0, nonzeros_equal=False)  # the result if the next line raises
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
    """Prove sites jointly, and in halves if that fails or does not fit in memory.

    Returns:
        The proven sites, the largest relative error among them, and the first failure.
    """
    note = ""
    try:
        proof = prove_sites(model, sites, inputs)
        if proof.holds:
            return list(sites), proof.error, ""
        note = f"not proven: {sites[0].name}: error {proof.error:.1e}, power {proof.power:.1e}."
    except Exception as error:  # any error of the widened forward pass, or a lack of memory
        if len(sites) == 1 and out_of_memory(error):
            raise
        note = f"not proven: {sites[0].name}: {sentence(error)}."
    if len(sites) == 1:
        return [], None, note
    gc.collect()
    # A failed joint proof does not tell which site is wrong, so the halves are proven alone.
    halves = [prove(model, half, inputs) for half in (sites[: len(sites) // 2], sites[len(sites) // 2 :])]
    errors = [error for _, error, _ in halves if error is not None]
    good = [site for proven, _, _ in halves for site in proven]
    return good, max(errors, default=None), next((note for _, _, note in halves if note), "")


def split(model: nn.Module, sites: Sequence[Site]) -> tuple[list[Site], list[str]]:
    """Expand all sites by two, except sites with too few inputs.

    Returns:
        The sites that were split, and the reasons for the others.
    """
    chosen, reasons = list(sites), []
    few = [site for site in sites if site.fan_in < 2]  # refused alone: a joint expansion would refuse them late
    while chosen:
        tried = [few.pop()] if few else chosen
        try:
            expand(model, fpe.Paper(alpha=2), sites=tried)
        except ValueError as error:
            named = re.search(r"asked for (\S+), whose|Splitting (\S+) by", str(error))
            if named is None:
                raise
            bad = named[1] or named[2]
            chosen = [site for site in chosen if site.name != bad]
            reason = re.sub(r"^Splitting .* have to go\. ", "too few weights to prune for the copies: ", str(error))
            reasons.append(reason.replace(bad, "a site"))
        else:
            if tried is chosen:
                break
    return chosen, reasons


def counted(reasons: Iterable[str]) -> str:
    """The most frequent reasons, with their numbers.

    Example:
        >>> counted(["it has 3 inputs", "it has 2 inputs"])
        '2 x it has # inputs'
    """
    counts = Counter(kind_of(reason) for reason in reasons)
    return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common(4))


def train_step(model: nn.Module, inputs: Any) -> bool:
    """Run forward, backward and one optimizer step in training mode; return True if every number stays finite."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loss = torch.stack([output.float().square().mean() for output in _outputs(model, inputs)]).sum()
    loss.backward()
    used = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # two tiny images give steep losses
    optimizer.step()
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in (loss, *used, *model.parameters()))
    optimizer.zero_grad()
    return bool(used) and finite


def same_after_loading(model: nn.Module, fresh: nn.Module, inputs: Any) -> bool:
    """Load into a model with the widths before the split, and compare tensors and outputs bit by bit."""
    state = model.state_dict()
    load_expanded_state_dict(fresh, state)
    loaded = fresh.state_dict()
    if list(state) != list(loaded) or not all(torch.equal(state[key], loaded[key]) for key in state):
        return False
    with torch.no_grad():  # in training mode: in eval mode, running statistics of one step let outputs overflow
        pairs = zip(_outputs(model.train(), inputs), _outputs(fresh.train(), inputs), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


def _outputs(model: nn.Module, inputs: Any) -> Iterator[Tensor]:
    given = Inputs.of(inputs)
    torch.manual_seed(0)
    outputs = list(tensors_in(model(*given.args, **given.kwargs)))
    return (output for output in outputs if output.is_floating_point())


def _blank(model: nn.Module) -> nn.Module:
    """The same model with all parameters zero, so that only loading can make it equal."""
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    return fresh


def kind_of(reason: str) -> str:
    """A refusal without the names and numbers of its model.

    Example:
        >>> kind_of("tied weights: a.weight and b.weight are one tensor")
        'tied weights: ... and ... are one tensor'
    """
    return re.sub(r"\d+", "#", re.sub(r"\b[\w]+(\.[\w]+)+", "...", reason))[:140]


def sentence(error: Exception) -> str:
    """An exception in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]


def out_of_memory(error: Exception) -> bool:
    """Whether a process with a memory limit exceeded it."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


@contextmanager
def memory_limit(gibibytes: float) -> Iterator[None]:
    """Limit the memory of this process; an allocation beyond the limit raises (Linux)."""
    old = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int((gibibytes + RESERVE) * 2**30), old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)
