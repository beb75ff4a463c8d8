"""Interference before and after the split, and whether it goes with the gain in accuracy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn
from typing_extensions import override

from fpe_lightning.interference import (
    clause_collisions,
    clause_coverage,
    feature_capacity,
    mean_absolute_cosine_similarity,
    mean_cosine_similarity,
)
from fpe_lightning.networks import MLP
from fpe_lightning.studies.arms import Arm
from fpe_lightning.studies.boolean import Regime
from fpe_lightning.studies.clip_probe import Probe
from fpe_lightning.studies.findings import Findings
from fpe_lightning.studies.interference_report import findings
from fpe_lightning.studies.pixels import Pixels
from fpe_lightning.studies.results import Row
from fpe_lightning.studies.setting import Moment, Setting
from fpe_lightning.studies.splitting import alive_of
from fpe_lightning.studies.task import Task

KINDS: dict[str, type[Setting]] = {"boolean": Regime, "clip_probe": Probe, "pixels": Pixels}
"""Where the data come from: the studies whose settings know."""
WEIGHTS = {
    "capacity": feature_capacity,
    "cosine": mean_cosine_similarity,
    "absolute_cosine": mean_absolute_cosine_similarity,
}
"""Measures of the weights ``(neurons, inputs)``; those of an input or pair are averaged."""
CLAUSES = {"collisions": clause_collisions, "coverage": clause_coverage}
"""Measures of the structure, where the clauses are known; both are 1 for a dense layer."""


@dataclass(frozen=True)
class Interference(Setting):
    """One setting of the study ``interference``: the data of another study, and the first hidden layer measured.

    Attributes:
        of: The study whose data these are: ``"boolean"``, ``"clip_probe"`` or ``"pixels"``.
        data: What that study's settings say of their data, such as ``clauses`` or ``train_size``.
        when: The split, as a share of the epochs, so that one grid serves studies of unequal length; None takes
            ``split``.
    """

    of: str = "boolean"
    data: dict[str, Any] = field(default_factory=dict)
    when: float | None = None

    @override
    def task(self, seed: int) -> Task:
        """The data that the other study has for a seed."""
        return KINDS[self.of](**self.data).task(seed)

    @override
    def starts(self, arm: Arm) -> int:
        """The epoch from which an arm trains on its own; see :class:`Setting`."""
        if self.when is not None and arm.kind == "split" and arm.split is None:
            return round(self.when * self.epochs)
        return super().starts(arm)

    @override
    def check(self) -> None:
        """Check sizes and training, and that the other study has such data.

        Raises:
            ValueError: If a number is out of range, or a name unknown.

        Example:
            >>> Interference(of="boolean", data={"clauses": 4}, when=0.5).check()
        """
        super().check()
        if self.of not in KINDS:
            raise ValueError(f"`of` has to be one of {', '.join(KINDS)}, found {self.of!r}.")
        if self.when is not None and not 0 <= self.when < 1:
            raise ValueError(f"`when` has to be at least 0 and below 1, found {self.when}.")
        own = {each.name for each in fields(Setting)}
        known = [each.name for each in fields(KINDS[self.of]) if each.name not in own]
        for key in self.data:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"`data` of {self.of!r} has no {key!r}.{hint} Known: {', '.join(known)}.")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(KINDS[self.of], skip=own)
        try:
            parser.parse_object(self.data)
        except ArgumentError as error:
            raise ValueError(f"`data` of {self.of!r} cannot be: {' '.join(str(error).split())}") from error

    @property
    @override
    def measures(self) -> tuple[str, ...]:
        """Three measures of the weights at three moments, and those of the structure."""
        weights = [f"{name}_{moment}" for moment in ("before", "after", "end") for name in WEIGHTS]
        return *weights, *(f"{name}_after" for name in CLAUSES if self.of == "boolean")

    @override
    def observe(self, moment: Moment, networks: Sequence[nn.Module], task: Task) -> dict[str, float]:
        """Measure the first hidden layer; several networks are averaged."""
        layers = [cast("MLP", network).linear_layers()[0] for network in networks]
        found = {
            f"{name}_{moment}": sum(float(measure(layer.weight.detach()).mean()) for layer in layers) / len(layers)
            for name, measure in WEIGHTS.items()
        }
        if moment == "after" and task.groups is not None:
            (layer,) = layers
            # The children of a neuron stand side by side.
            parents = torch.arange(layer.out_features) // self.alpha
            found |= {
                f"{name}_after": float(measure(alive_of(layer), task.groups, parents))
                for name, measure in CLAUSES.items()
            }
        return found

    @override
    @classmethod
    def findings(cls, rows: Sequence[Row]) -> Findings:
        """Fold changes and their fits against the gain."""
        return findings(rows)
