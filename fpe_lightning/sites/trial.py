"""Trials: a candidate is a site only if the widened model runs and its entries can be laid out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from fpe_lightning.sites.attributes import changed_values, patch_attributes
from fpe_lightning.sites.candidates import Candidate, Refusal
from fpe_lightning.sites.runs import find_runs, sizes_of
from fpe_lightning.sites.site import Attribute, Site
from fpe_lightning.sites.tracing.blocks import Blocks
from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.forward import At, Inputs, Widening, trace
from fpe_lightning.sites.tracing.sandbox import Tensors, modules_by_name, state_of
from fpe_lightning.sites.tracing.units import Units, resolve


class Run(NamedTuple):
    """One way to run a model.

    Attributes:
        inputs: Its inputs.
        training: Whether in training mode.
        fake: Whether with fake tensors, which have shapes and no values.
    """

    inputs: Inputs
    training: bool
    fake: bool


@dataclass
class Trials:
    """The trials of one model, which learn from each other.

    Attributes:
        model: The model; every trial borrows it and puts it back.
        runs: How the model can be run, once for each mode that works.
        units: The units of the traces at the original widths.
        stand_ins: Made the tensors of those traces: fake ones or not.
        blocks: The calls of repeated blocks in those traces.
        refusals: Filled with the candidates that fail.
        attempts: Trials so far.
        learned: Attributes of custom modules that had to grow once (class, name, index, and whether an operator was
            given their value), which are tried at once for later candidates.
        hopeless: Kinds of candidates that failed: blocks repeat, so one of each kind is enough to try every guess on.
        together: The sites that the last trial of the whole model found to fit together, in the order of the forward.
        place: The position of each candidate in the forward, by its group.
        modules: All modules by name.
    """

    model: nn.Module
    runs: Sequence[Run]
    units: Units
    stand_ins: Mapping[bool, Tensors]
    blocks: Blocks
    refusals: list[Refusal] = field(default_factory=list)
    attempts: int = 0
    learned: set[tuple[type[nn.Module], str, int | None, bool]] = field(default_factory=set)
    hopeless: set[Hashable] = field(default_factory=set)
    together: list[Candidate] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        """Look modules up once: no trial adds any."""
        self.modules = modules_by_name(self.model)

    def accept(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Try candidates together and, where that fails, one of each kind and halves of them, down to single ones.

        Candidates of one kind are tried next to each other, so that one bad kind does not break up all the others.

        Args:
            candidates: Candidates in the order of the forward.

        Returns:
            The candidates that are sites, with their runs and all the attributes that they need.
        """
        # 1. Try all together, then one of each kind, then halves.
        kinds = [self._kind_of(candidate) for candidate in candidates]
        self.place = {candidate.group: i for i, candidate in enumerate(candidates)}
        found = self._accept([candidates[i] for i in sorted(range(len(kinds)), key=lambda i: kinds.index(kinds[i]))])
        # 2. Sites that were accepted apart must fit together too; keep as many as do, in the order of the forward.
        good = self._in_order(found)
        if self.attempts == 1 or good == self.together or self._fit_together(good):
            return good
        kept: list[Candidate] = []
        for candidate in good:
            if self._fit_together([*kept, candidate]):
                kept.append(candidate)
            else:
                self._refuse(candidate, "it cannot be widened together with the sites before it")
        return kept

    def _in_order(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates in the order of the forward."""
        return sorted(candidates, key=lambda candidate: self.place[candidate.group])

    def _fit_together(self, candidates: Sequence[Candidate], others: Sequence[Candidate] = ()) -> bool:
        """Whether sites that were found apart have the same layout when all of them are widened, and others have one.

        Candidates that fit are noted in ``together``, the others with their runs.
        """
        tried = self._in_order([*candidates, *others])
        outcome = self._attempt(tried)
        if isinstance(outcome, Exception):
            return False
        fitting = [(each, runs) for each, runs in zip(tried, outcome, strict=True) if not isinstance(runs, str)]
        together = [candidate.with_runs(runs) for candidate, runs in fitting]
        known = {candidate.group: candidate for candidate in candidates}
        if len(together) < len(tried) or any(known.get(each.group, each) != each for each in together):
            return False
        self.together = together
        return True

    def _accept(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        if not candidates:
            return []
        tried = [self._with_learned(candidate) for candidate in candidates]
        outcome = self._attempt(tried)
        if not isinstance(outcome, Exception):
            good = []
            for before, candidate, runs in zip(candidates, tried, outcome, strict=True):
                good.extend(self._patched(before, runs) if isinstance(runs, str) else [candidate.with_runs(runs)])
            return good
        if len(candidates) == 1:
            reason = f"hard-coded size in forward: the widened model raises {sentence_of(outcome)}"
            return self._patched(candidates[0], reason, failed=tried[0] == candidates[0])
        # One of each kind shows the needs of the others, or that there is little hope for them.
        kinds = [self._kind_of(candidate) for candidate in candidates]
        firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
        if len(firsts) == len(candidates):
            middle = len(candidates) // 2
            return self._accept(candidates[:middle]) + self._accept(candidates[middle:])
        found = self._accept([candidates[i] for i in firsts])
        groups = {candidate.group for candidate in found}
        fine = {kinds[i] for i in firsts if candidates[i].group in groups}
        others = sorted(set(range(len(candidates))) - set(firsts))
        found = self._with_others(found, [candidates[i] for i in others if kinds[i] in fine])
        # Little hope for the rest: a trial of several of them is a trial of the first.
        return found + [good for i in others if kinds[i] not in fine for good in self._accept([candidates[i]])]

    def _with_others(self, found: list[Candidate], others: Sequence[Candidate]) -> list[Candidate]:
        """Add candidates whose kind was accepted; most often all of them fit together as they are."""
        if others and self._fit_together(found, [self._with_learned(candidate) for candidate in others]):
            return self.together
        return found + self._accept(others)

    def _attempt(self, candidates: Sequence[Candidate]) -> list[list[int] | str] | Exception:
        """Widen some candidates at once.

        Neighbours get different numbers of copies, so that a forward which reads the size of one width from another
        one does not pass.

        Returns:
            The runs of each candidate, or the reason why it has none; or the exception of the forward.
        """
        self.attempts += 1
        copies = [2 + position % 2 for position in range(len(candidates))]
        sites = [(candidate.site, alpha) for candidate, alpha in zip(candidates, copies, strict=True)]
        # One candidate alone concerns its own block; all that are accepted are tried together in the whole model.
        facts = self.facts_at(sites, blocks=self.blocks if len(sites) == 1 and self.attempts > 1 else None)
        if isinstance(facts, Exception):
            return facts
        after = resolve(facts)
        offsets = _offsets(candidates, copies)
        return [
            find_runs(candidate, alpha, offsets, self.units, after)
            for candidate, alpha in zip(candidates, copies, strict=True)
        ]

    def facts_at(self, sites: Sequence[tuple[Site, int]], blocks: Blocks | None = None) -> Facts | Exception:
        """Trace the model with some sites widened.

        Args:
            sites: Sites, each with its number of copies.
            blocks: Knows what blocks without a site return; they do not run.

        Returns:
            The facts, or the exception that the forward raises.
        """
        shapes = {name: tensor.shape for name, tensor in state_of(self.model).items()}
        widening = Widening(sizes_of(sites, shapes), changed_values(sites, self.modules))
        stand_ins = {run.fake: Tensors(run.fake, like=self.stand_ins[run.fake]) for run in self.runs}
        facts = Facts()
        try:
            for inputs, training, fake in self.runs:
                at = At(training=training, tensors=stand_ins[fake], widening=widening, known=facts)
                facts.absorb(trace(self.model, inputs, at, blocks=blocks if fake else None))
        except Exception as error:  # a forward may raise anything at a size it was not written for
            return error
        return facts

    def _patched(self, candidate: Candidate, reason: str, failed: bool = False) -> list[Candidate]:
        """Try a failed candidate again with integers of the surrounding modules grown, and keep those it needs.

        Args:
            candidate: The candidate.
            reason: Why it failed.
            failed: Whether it failed alone and as it is, so that there is no need to try that again.
        """
        # 1. Guess integers that the code around the candidate reads; numbers that it hands to operators come first.
        written, met = (self._guesses(candidate, written=flag) for flag in (True, False))
        kind = (self._kind_of(candidate, met), re.sub(r"\d+", "#", reason))
        if kind in self.hopeless:
            self._refuse(candidate, reason)
            return []
        options = list(dict.fromkeys([(), written, met, *((guess,) for guess in met)]))
        # 2. Try no guess, all of a kind, single ones; with the candidate as it is and cut into sweeps.
        for variant, option in itertools.product(dict.fromkeys((candidate, candidate.split())), options):
            if failed and not option and variant == candidate:
                continue
            runs = self._runs_with(variant, option)
            if runs is None:
                continue
            # 3. Drop guesses that make no difference.
            needed = option
            for attribute in option if len(option) > 1 else ():
                fewer = tuple(other for other in needed if other != attribute)
                if self._runs_with(variant, fewer) == runs:
                    needed = fewer
            modules = self.modules
            self.learned |= {(type(modules[a.module]), a.name, a.index, a in written) for a in needed}
            return [variant.with_attributes((*variant.site.attributes, *needed)).with_runs(runs)]
        self.hopeless.add(kind)
        self._refuse(candidate, reason)
        return []

    def _kind_of(self, candidate: Candidate, guesses: Sequence[Attribute] = ()) -> Hashable:
        """A key that equal blocks share: classes and names of the candidate's parameters, but no sizes."""
        modules = self.modules
        owners = (axis.parameter.rpartition(".") for axis in candidate.axes)
        axes = tuple((type(modules[owner]), name) for owner, _, name in owners)
        dims = tuple(axis.dim for axis in candidate.axes)
        attributes = tuple((type(modules[a.module]), a.name, a.index) for a in guesses)
        return axes, dims, attributes

    def _guesses(self, candidate: Candidate, *, written: bool) -> tuple[Attribute, ...]:
        return patch_attributes(candidate, self.units, self.modules, written=written)

    def _with_learned(self, candidate: Candidate) -> Candidate:
        """Grow those attributes that another candidate needed in a module of the same class."""
        known = []
        for flag in {written for *_, written in self.learned}:
            modules = self.modules
            for a in self._guesses(candidate, written=flag):
                if (type(modules[a.module]), a.name, a.index, flag) in self.learned and a not in known:
                    known.append(a)
        return candidate.with_attributes((*candidate.site.attributes, *known))

    def _runs_with(self, candidate: Candidate, attributes: tuple[Attribute, ...]) -> list[int] | None:
        outcome = self._attempt([candidate.with_attributes((*candidate.site.attributes, *attributes))])
        return outcome[0] if isinstance(outcome, list) and isinstance(outcome[0], list) else None

    def _refuse(self, candidate: Candidate, reason: str) -> None:
        self.refusals.append(Refusal(candidate.site.name, reason))


def _offsets(candidates: Sequence[Candidate], copies: Sequence[int]) -> dict[tuple[str, int, int], int]:
    """Where each stretch starts on its widened axis."""
    stretches = sorted(
        (axis.parameter, axis.dim, axis.start, axis.length * (alpha - 1))
        for candidate, alpha in zip(candidates, copies, strict=True)
        for axis in candidate.axes
    )
    offsets: dict[tuple[str, int, int], int] = {}
    grown: dict[tuple[str, int], int] = {}
    for parameter, dim, start, growth in stretches:
        offsets[parameter, dim, start] = start + grown.get((parameter, dim), 0)
        grown[parameter, dim] = grown.get((parameter, dim), 0) + growth
    return offsets


def sentence_of(error: Exception) -> str:
    """An exception as part of a sentence: its type and the beginning of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
