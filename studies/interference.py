"""Interference before and after the split, and whether it goes with the gain in accuracy."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.interference import (
    clause_collisions,
    clause_coverage,
    feature_capacity,
    mean_absolute_cosine_similarity,
    mean_cosine_similarity,
)
from studies.arms import Arm
from studies.boolean import Regime
from studies.clip_probe import Probe
from studies.dropconnect import DropConnectNetwork
from studies.findings import Findings
from studies.from_scratch import layers_of
from studies.interference_report import findings
from studies.pictures import CNN, ViT
from studies.pixels import Pixels
from studies.runs import Runs
from studies.setting import Moment, Setting
from studies.splitting import alive_of
from studies.task import Task

KINDS: dict[str, type[Setting]] = {
    "boolean": Regime,
    "clip_probe": Probe,
    "cnn": CNN,
    "deep": Probe,
    "pixels": Pixels,
    "transformer": ViT,
}
"""The studies whose networks are split: their settings know the data, the networks and the sites."""
WEIGHTS = {
    "capacity": feature_capacity,
    "cosine": mean_cosine_similarity,
    "absolute_cosine": mean_absolute_cosine_similarity,
}
"""Measures of a weight ``(neurons, inputs)``, or ``(neurons, inputs, *kernel)`` of a convolution, whose inputs are
channels, as a split shares out channels. Means over inputs, or over pairs of neurons.
"""
CLAUSES = {"collisions": clause_collisions, "coverage": clause_coverage}
"""Measures of the structure, where the clauses are known; both are 1 for a dense layer."""


@dataclass(frozen=True)
class Interference(Setting):
    """One setting of the study ``interference``: the data and networks of another study, with their weights measured.

    It measures the layers that compute the neurons to split: all hidden layers of an MLP, the hidden layer of the head
    of a CNN and the convolutions that are split too, and the first layers of all feed-forward networks of a
    transformer. Each layer is measured on its own, and the measures are averaged over layers.

    Sizes and training are this setting's, their defaults too, so that one grid serves several studies.

    Attributes:
        of: The study whose data and networks these are: a key of :data:`KINDS`.
        data: The attributes that only that study's settings have, such as ``clauses``, ``train_size`` or ``channels``.
        when: The split, as a share of the epochs, so that one grid serves studies of unequal length; None takes
            ``split``.
    """

    of: str = "boolean"
    data: dict[str, Any] = field(default_factory=dict)
    when: float | None = None

    @property
    def studied(self) -> Setting:
        """The other study's setting, with the sizes and the training of this one."""
        return KINDS[self.of](**self.data, **{each.name: getattr(self, each.name) for each in fields(Setting)})

    @property
    @override
    def splits(self) -> list[str] | None:
        return self.studied.splits

    @override
    def widths(self) -> list[int]:
        return self.studied.widths()

    @override
    def build(self, task: Task, widths: Sequence[int]) -> nn.Module:
        return self.studied.build(task, widths)

    @override
    def task(self, seed: int) -> Task:
        """The data that the other study has for a seed."""
        return self.studied.task(seed)

    @property
    @override
    def split_epoch(self) -> int:
        return self.split if self.when is None else round(self.when * self.epochs)

    @override
    def check(self) -> None:
        """Check that there is such a study, and that its networks can have these sizes, data and training.

        Raises:
            ValueError: If a number is out of range, or a name unknown.

        Example:
            >>> Interference(of="boolean", data={"clauses": 4}, when=0.5).check()
            >>> Interference(of="transformer", hidden=[4, 8, 4], data={"depth": 3}).check()
        """
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
        self.studied.check()

    @override
    def check_arm(self, arm: Arm) -> None:
        self.studied.check_arm(arm)

    @property
    @override
    def measures(self) -> tuple[str, ...]:
        """Three measures of the weights at three moments, and those of the structure."""
        weights = [f"{name}_{moment}" for moment in ("before", "after", "end") for name in WEIGHTS]
        return *weights, *(f"{name}_after" for name in CLAUSES if self.of == "boolean")

    @override
    def observe(self, moment: Moment, networks: Sequence[nn.Module], task: Task) -> dict[str, float]:
        """Measure the layers that are split, averaged over layers and networks; clauses in the first layer alone."""
        layers = [layer for network in networks for layer in split_layers(network, self.splits)]
        found = {f"{name}_{moment}": averaged(measure, layers) for name, measure in WEIGHTS.items()}
        if moment == "after" and task.groups is not None:
            first = layers[0]
            # The children of a neuron are adjacent rows.
            parents = torch.arange(len(first.weight)) // (len(first.weight) // self.widths()[0])
            found |= {
                f"{name}_after": float(measure(alive_of(first), task.groups, parents))
                for name, measure in CLAUSES.items()
            }
        return found

    @override
    @classmethod
    def findings(cls, runs: Runs) -> Findings:
        """Fold changes and their fits against the gain."""
        return findings(runs)


def split_layers(network: nn.Module, splits: Sequence[str] | None) -> list[nn.Linear | nn.Conv2d]:
    """The layers that compute the neurons to split, from input to output; before and after the split alike.

    Args:
        network: One of a study.
        splits: Names or globs of layers, as :attr:`Setting.splits` has them; None for all but the classifier.

    Example:
        >>> from fpe_lightning.networks import MLP, SmallViT
        >>> [layer.out_features for layer in split_layers(MLP(6, [4, 3], 2), None)]
        [4, 3]
        >>> [layer.out_features for layer in split_layers(SmallViT(hidden=[8, 4]), ["blocks.*.ffn.0"])]
        [8, 4]
    """
    bare = network.network if isinstance(network, DropConnectNetwork) else network
    *hidden, _ = layers_of(bare).items()
    return [layer for name, layer in hidden if splits is None or any(fnmatchcase(name, glob) for glob in splits)]


def averaged(measure: Callable[[Tensor], Tensor], layers: Sequence[nn.Linear | nn.Conv2d]) -> float:
    """The mean over layers of the mean of a measure of their weights: every layer counts the same, whatever its size.

    Example:
        >>> layers = [nn.Linear(2, 2), nn.Linear(3, 2)]
        >>> averaged(lambda weight: torch.ones(weight.shape[1]) * weight.shape[1], layers)
        2.5
    """
    return sum(float(measure(layer.weight.detach()).mean()) for layer in layers) / len(layers)
