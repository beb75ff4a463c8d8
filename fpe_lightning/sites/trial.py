"""Trials: a candidate is a site only if the widened model runs and its entries can be laid out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from fpe_lightning.sites.attributes import changed_values, patch_attributes
from fpe_lightning.sites.candidates import Candidate, Refusal
from fpe_lightning.sites.runs import find_runs, sizes_of
from fpe_lightning.sites.site import Attribute, Site
from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.forward import Inputs, Widening, trace
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
        refusals: Filled with the candidates that fail.
        attempts: Trials so far.
        learned: Attributes of custom modules that had to grow once (class, name, index, and whether an operator was
            given their value), which are tried at once for later candidates.
        hopeless: Kinds of candidates that failed: blocks repeat, so one of each kind is enough to try every guess on.
    """

    model: nn.Module
    runs: Sequence[Run]
    units: Units
    refusals: list[Refusal] = field(default_factory=list)
    attempts: int = 0
    learned: set[tuple[type[nn.Module], str, int | None, bool]] = field(default_factory=set)
    hopeless: set[Hashable] = field(default_factory=set)

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
        found = self._accept([candidates[i] for i in sorted(range(len(kinds)), key=lambda i: kinds.index(kinds[i]))])
        # 2. Sites that were accepted apart must fit together too; keep as many as do, in the order of the forward.
        place = {candidate.group: i for i, candidate in enumerate(candidates)}
        good = sorted(found, key=lambda candidate: place[candidate.group])
        if self.attempts == 1 or self._fit_together(good):
            return good
        kept: list[Candidate] = []
        for candidate in good:
            if self._fit_together([*kept, candidate]):
                kept.append(candidate)
            else:
                self._refuse(candidate, "it cannot be widened together with the sites before it")
        return kept

    def _fit_together(self, candidates: Sequence[Candidate]) -> bool:
        """Whether sites that were found apart have the same layout when all of them are widened."""
        outcome = self._attempt(candidates)
        return not isinstance(outcome, Exception) and outcome == [
            [axis.run for axis in candidate.axes] for candidate in candidates
        ]

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
        others = [i for i in range(len(candidates)) if i not in firsts]
        found += self._accept([candidates[i] for i in others if kinds[i] in fine])
        return found + self._accept([candidates[i] for i in others if kinds[i] not in fine])

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
        facts = self.facts_at(sites)
        if isinstance(facts, Exception):
            return facts
        after = resolve(facts)
        offsets = _offsets(candidates, copies)
        return [
            find_runs(candidate, alpha, offsets, self.units, after)
            for candidate, alpha in zip(candidates, copies, strict=True)
        ]

    def facts_at(self, sites: Sequence[tuple[Site, int]]) -> Facts | Exception:
        """Trace the model with some sites widened.

        Args:
            sites: Sites, each with its number of copies.

        Returns:
            The facts, or the exception that the forward raises.
        """
        shapes = {name: tensor.shape for name, tensor in state_of(self.model).items()}
        widening = Widening(sizes_of(sites, shapes), changed_values(sites, modules_by_name(self.model)))
        stand_ins = {run.fake: Tensors(run.fake) for run in self.runs}
        facts = Facts()
        try:
            for inputs, training, fake in self.runs:
                facts.absorb(trace(self.model, inputs, training=training, tensors=stand_ins[fake], widening=widening))
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
            modules = modules_by_name(self.model)
            self.learned |= {(type(modules[a.module]), a.name, a.index, a in written) for a in needed}
            return [variant.with_attributes((*variant.site.attributes, *needed)).with_runs(runs)]
        self.hopeless.add(kind)
        self._refuse(candidate, reason)
        return []

    def _kind_of(self, candidate: Candidate, guesses: Sequence[Attribute] = ()) -> Hashable:
        """A key that equal blocks share: classes and names of the candidate's parameters, but no sizes."""
        modules = modules_by_name(self.model)
        owners = (axis.parameter.rpartition(".") for axis in candidate.axes)
        axes = tuple((type(modules[owner]), name) for owner, _, name in owners)
        dims = tuple(axis.dim for axis in candidate.axes)
        attributes = tuple((type(modules[a.module]), a.name, a.index) for a in guesses)
        return axes, dims, attributes

    def _guesses(self, candidate: Candidate, *, written: bool) -> tuple[Attribute, ...]:
        return patch_attributes(candidate, self.units, modules_by_name(self.model), written=written)

    def _with_learned(self, candidate: Candidate) -> Candidate:
        """Grow those attributes that another candidate needed in a module of the same class."""
        known = []
        for flag in {written for *_, written in self.learned}:
            modules = modules_by_name(self.model)
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
