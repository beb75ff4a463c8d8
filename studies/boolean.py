"""The Boolean task: which structure learns a formula best at equally many non-zeros."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from fpe_lightning.data.boolean import Coding, Positives, dnf_task
from studies.setting import Setting
from studies.task import Task


@dataclass(frozen=True)
class Regime(Setting):
    """One setting of the study ``boolean``; the defaults are the data nearest to the paper's figures.

    Attributes:
        clauses: Of the formula.
        literals: Of each clause.
        inputs: Variables; None takes as many as the clauses need.
        samples: Training samples.
        coding: See :func:`~fpe_lightning.data.boolean.dnf_task`.
        positives: See :func:`~fpe_lightning.data.boolean.dnf_task`.
    """

    clauses: int = 8
    literals: int = 3
    inputs: int | None = None
    samples: int = 2048
    coding: Coding = "signs"
    positives: Positives = "uniform"

    @override
    def task(self, seed: int) -> Task:
        """The formula and samples of one seed."""
        drawn = dnf_task(
            self.clauses,
            self.literals,
            self.clauses * self.literals if self.inputs is None else self.inputs,
            train=self.samples,
            coding=self.coding,
            positives=self.positives,
            seed=seed,
        )
        train, val, test = ((x, y.long()) for x, y in (drawn.train, drawn.val, drawn.test))
        return Task(train, val, test, classes=2, groups=drawn.groups)
