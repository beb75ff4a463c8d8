"""Arms of a study: networks of equally many non-zeros that differ in structure alone, and a few that spend more."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn
from typing_extensions import override

import fpe_lightning as fpe
from fpe_lightning.expansion.config import BaseExpansion
from fpe_lightning.partitions import Partition
from studies.from_scratch import LowRankMLP, drop_connect, larger_network, one_shot_, place_, wide_sparse
from studies.moves import Moves, Schedule, Shrink

if TYPE_CHECKING:
    from studies.setting import Setting
    from studies.task import Task

BASELINES = ("dense", "wide_sparse")
"""Labels of the arms that every other arm is compared with."""


@dataclass(frozen=True)
class Arm:
    """One way to spend the non-zeros.

    A study gives each arm a label, the name of its rows. A subclass says how the network begins.

    Attributes:
        legend: How figures call this kind of arm.
        marker: Its mark in figures, so that they read in grey.
    """

    legend: ClassVar[str] = ""
    marker: ClassVar[str] = "o"

    @property
    def marked(self) -> bool:
        """Whether it spends more non-zeros than the others."""
        return False

    @property
    def networks(self) -> int:
        """Number of networks whose mean is one run."""
        return 1

    @property
    def schedule(self) -> Schedule | None:
        """How masks change while it trains; None where they stay."""
        return None

    @property
    def times(self) -> int:
        """How many times the setting's epochs it trains."""
        return 1

    def starts(self, split: int, epochs: int) -> int:
        """The epoch from which a run no longer shares the training of the dense network of its seed.

        Args:
            split: The setting's epoch of the split.
            epochs: The setting's epochs.
        """
        return 0

    def build(self, setting: Setting, task: Task, seed: int) -> nn.Module:
        """The network at epoch 0; layers draw their weights from the global source of random numbers.

        Args:
            setting: Sizes.
            task: Number of inputs and outputs, and samples.
            seed: Of masks.

        Raises:
            ValueError: If the number of non-zeros cannot be met.
        """
        return setting.build(task, setting.widths())


@dataclass(frozen=True)
class Dense(Arm):
    """The dense network."""

    legend: ClassVar[str] = "dense"
    marker: ClassVar[str] = "s"

    @override
    def starts(self, split: int, epochs: int) -> int:
        return epochs


@dataclass(frozen=True)
class Longer(Arm):
    """The dense network, trained for more epochs.

    Attributes:
        factor: Epochs, as a multiple of those of the setting.
    """

    legend: ClassVar[str] = "dense, longer"
    marker: ClassVar[str] = "p"
    factor: int = 2

    @property
    @override
    def times(self) -> int:
        return self.factor


@dataclass(frozen=True)
class LowRank(Arm):
    """A wider network whose hidden weights are a product of two thin matrices, of no more parameters."""

    legend: ClassVar[str] = "low rank"
    marker: ClassVar[str] = "h"

    @override
    def build(self, setting: Setting, task: Task, seed: int) -> nn.Module:
        (width,) = setting.widths()
        return LowRankMLP(task.inputs, width, task.outputs)


@dataclass(frozen=True)
class Larger(Arm):
    """A dense network with more parameters.

    Attributes:
        factor: Parameters, as a multiple of those of the dense network.
    """

    legend: ClassVar[str] = "dense, larger"
    marker: ClassVar[str] = "D"
    factor: float = 1.2

    @property
    @override
    def marked(self) -> bool:
        return True

    @override
    def build(self, setting: Setting, task: Task, seed: int) -> nn.Module:
        return larger_network(setting, task, self.factor)


@dataclass(frozen=True)
class WideSparse(Arm):
    """A network as wide as after a split, sparse from scratch.

    Attributes:
        allocation: How many non-zeros each layer gets: see ``WideSparseMLP``.
        placed: Neurons choose their inputs by this partition, fitted to the untrained network; None draws them at
            random.
        alpha: How much wider; None takes the ``alpha`` of the setting.
        moves: How weights move while it trains; None for static masks.
        scored: Whether the hidden weights of largest ``|weight x gradient|`` at initialisation are kept (SNIP), in
            place of random ones.
    """

    legend: ClassVar[str] = "wide and sparse from scratch"
    marker: ClassVar[str] = "^"
    allocation: Literal["hidden", "even", "fan_in", "erk"] = "hidden"
    placed: str | Partition | None = None
    alpha: int | None = None
    moves: Moves | None = None
    scored: bool = False

    @property
    @override
    def schedule(self) -> Schedule | None:
        return self.moves

    @override
    def build(self, setting: Setting, task: Task, seed: int) -> nn.Module:
        setting = replace(setting, alpha=self.alpha or setting.alpha)
        network = wide_sparse(setting, task, self.allocation, seed)
        if self.scored:
            one_shot_(network, task)
        if self.placed is not None:
            place_(network, self.placed, setting.alpha, task, seed)
        return network


@dataclass(frozen=True)
class DropConnect(Arm):
    """A wide dense network that keeps, in each step, as many incoming weights as the others have."""

    legend: ClassVar[str] = "DropConnect"
    marker: ClassVar[str] = "v"

    @property
    @override
    def marked(self) -> bool:
        return True

    @override
    def build(self, setting: Setting, task: Task, seed: int) -> nn.Module:
        return drop_connect(setting, task, seed)


@dataclass(frozen=True)
class Gradual(Arm):
    """A wide dense network whose smallest hidden weights go, little by little, until the budget is met.

    Attributes:
        shrink: When they go.
    """

    legend: ClassVar[str] = "gradual pruning (GMP)"
    marker: ClassVar[str] = "<"
    shrink: Shrink = field(default_factory=Shrink)

    @property
    @override
    def marked(self) -> bool:
        return True

    @property
    @override
    def schedule(self) -> Schedule:
        return self.shrink

    @override
    def build(self, setting: Setting, task: Task, seed: int) -> nn.Module:
        wide_sparse(setting, task, "hidden", seed)  # raises where the budget cannot be met
        return setting.build(task, [setting.alpha * width for width in setting.widths()])


@dataclass(frozen=True)
class Again:
    """A second split.

    Attributes:
        at: The epoch at which every child is split once more.
        expansion: How; None stands for ``fpe.Paper()``. Its ``seed`` is that of the run.
    """

    at: int
    expansion: fpe.Expansion | BaseExpansion | None = None

    @property
    def rule(self) -> BaseExpansion:
        """The expansion."""
        return self.expansion or fpe.Paper()


@dataclass(frozen=True)
class Split(Arm):
    """A dense network whose neurons are split while it trains.

    Attributes:
        expansion: How; None stands for ``fpe.Paper()``. A run fills in two of its fields: ``alpha`` of the arm or the
            setting, and the ``seed``.
        at: The epoch of the split; None takes that of the setting.
        alpha: Children of each neuron; None takes those of the setting.
        then: A second split; None for one split.
        redraw: Whether the incoming weights of the children are drawn again under their masks.
        members: Networks whose mean is one run, each with masks of its own.
        moves: How weights move after the split; None for static masks.

    Raises:
        ValueError: If the expansion has an ``alpha`` or a ``seed`` of its own, which a run would overwrite.
    """

    legend: ClassVar[str] = "split (FPE)"
    marker: ClassVar[str] = "o"
    # A default of one class would lend its values to another class that a config names.
    expansion: fpe.Expansion | BaseExpansion | None = None
    at: int | None = None
    alpha: int | None = None
    then: Again | None = None
    redraw: bool = False
    members: int = 1
    moves: Moves | None = None

    @property
    @override
    def schedule(self) -> Schedule | None:
        return self.moves

    def __post_init__(self) -> None:
        default = type(self.rule)()
        for name in ("alpha", "seed"):
            if (found := getattr(self.rule, name)) != getattr(default, name):
                instead = "`alpha` of the arm" if name == "alpha" else "`first_seed` of the study"
                raise ValueError(f"The expansion of an arm leaves `{name}` to the run, found {found}; give {instead}.")

    @property
    def rule(self) -> BaseExpansion:
        """The expansion, whose ``alpha`` and ``seed`` a run fills in."""
        return self.expansion or fpe.Paper()

    @property
    def rules(self) -> list[BaseExpansion]:
        """The expansions of both splits."""
        return [self.rule] if self.then is None else [self.rule, self.then.rule]

    @property
    @override
    def marked(self) -> bool:
        return self.members > 1

    @property
    @override
    def networks(self) -> int:
        return self.members

    @override
    def starts(self, split: int, epochs: int) -> int:
        return split if self.at is None else self.at

    def expansion_of(self, alpha: int, seed: int) -> BaseExpansion:
        """The expansion of one run.

        Args:
            alpha: Children of each neuron, where the arm does not say it.
            seed: Of the run.

        Raises:
            ValueError: If the expansion cannot give a neuron so many children.
        """
        alpha = self.alpha or alpha
        if alpha == self.rule.alpha:
            return replace(self.rule, seed=seed)
        if not next(each.init for each in fields(self.rule) if each.name == "alpha"):
            name = type(self.rule).__name__
            raise ValueError(f"{name} always has alpha={self.rule.alpha}, found {alpha}; give the arm an `alpha`.")
        return replace(self.rule, alpha=alpha, seed=seed)
