"""Rewiring against all that experts ask for, on data that nobody tuned on, with the cost of each."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from studies.cost import MEASURES
from studies.findings import Findings
from studies.rewiring_report import findings
from studies.runs import Runs
from studies.sets import SETS, set_named
from studies.setting import Setting
from studies.task import Task


@dataclass(frozen=True)
class Rewiring(Setting):
    """One setting of the study ``rewiring``; a seed draws initial weights, order of samples and masks.

    Attributes:
        data: Name of the data set: see :mod:`studies.sets`.
    """

    alpha: int = 4
    lr: float = 0.01
    split: int = 1
    epochs: int = 50
    batch_size: int | None = 64
    zero_biases: bool = True
    data: str = "digits"

    @property
    @override
    def measures(self) -> tuple[str, ...]:
        return MEASURES

    @override
    def check(self) -> None:
        super().check()
        SETS.get(self.data)
        if not isinstance(self.hidden, int):
            raise ValueError(f"`hidden` is the one hidden width of these networks, found {self.hidden}.")

    @override
    def task(self, seed: int) -> Task:
        """The data, the same for every seed."""
        return set_named(self.data)

    @override
    @classmethod
    def findings(cls, runs: Runs) -> Findings:
        return findings(runs)
