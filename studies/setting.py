"""A setting of a study: the data, the sizes of the networks, and their training, which is the same for every arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from fpe_lightning.networks import MLP
from studies.arms import Arm, Dense, Split
from studies.findings import Findings
from studies.runs import Runs
from studies.task import Task

Moment = Literal["before", "after", "end"]
"""Just before a split, just after it, and when training is over."""


@dataclass(frozen=True)
class Setting:
    """Sizes and training of the networks; a study adds the source of its data, and the network if it is no MLP.

    Attributes:
        hidden: Neurons of the dense network; a list has an entry for each hidden layer.
        alpha: Children of each neuron, and how much wider a wide network is.
        lr: Adam's learning rate until ``switch``.
        lr_after: Learning rate from ``switch`` on; None keeps ``lr``.
        switch: Epoch at which every arm goes over to the new rate with a fresh Adam state; None for never.
        split: Epoch at which neurons are split, where an arm does not say otherwise.
        epochs: Epochs altogether, the same for every arm.
        batch_size: Samples of a step; None takes all.
        zero_biases: Whether the biases of hidden layers begin at zero. Biases as large as weights may leave sparse
            neurons silent for good where inputs are small, such as embeddings of length one.
        rates: Learning rates in place of ``lr``, by arm, for the whole of its training; a split arm with one trains a
            dense parent of its own at that rate.
    """

    hidden: int | list[int] = 8
    alpha: int = 2
    lr: float = 3e-3
    lr_after: float | None = None
    switch: int | None = None
    split: int = 300
    epochs: int = 2000
    batch_size: int | None = None
    zero_biases: bool = False
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def split_epoch(self) -> int:
        """Epoch at which neurons are split, where an arm does not say otherwise."""
        return self.split

    @property
    def splits(self) -> list[str] | None:
        """Names or globs of the sites that are split; None for all."""
        return None

    def widths(self) -> list[int]:
        """The hidden widths that are split, from input to output."""
        return [self.hidden] if isinstance(self.hidden, int) else list(self.hidden)

    def build(self, task: Task, widths: Sequence[int]) -> nn.Module:
        """A dense network.

        Args:
            task: Sizes of inputs and outputs.
            widths: As those of :meth:`widths`, or wider.
        """
        return MLP(task.inputs, widths, task.outputs)

    def task(self, seed: int) -> Task:
        """The data of one seed."""
        raise NotImplementedError

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of all measures of :meth:`observe`, in the order of the columns."""
        return ()

    def observe(self, moment: Moment, networks: Sequence[nn.Module], task: Task) -> dict[str, float]:
        """Measure networks, besides their accuracy at the end.

        Args:
            moment: Only networks that are split see the first two.
            networks: One, or at the end the members of an ensemble.
            task: The data.
        """
        return {}

    @classmethod
    def findings(cls, runs: Runs) -> Findings:
        """The part of a report that is about the measures."""
        return Findings()

    def check(self) -> None:
        """Check that networks of these sizes can be made and trained.

        Raises:
            ValueError: If a number is out of range.

        Example:
            >>> Setting(alpha=2).check()
        """
        sizes = {
            "hidden": self.hidden if isinstance(self.hidden, int) else min(self.hidden, default=0),
            "epochs": self.epochs,
            "batch_size": 1 if self.batch_size is None else self.batch_size,
        }
        for name, size in {**sizes, "alpha": self.alpha - 1}.items():
            if size < 1:
                least = 2 if name == "alpha" else 1
                raise ValueError(f"`{name}` has to be at least {least}, found {getattr(self, name)}.")
        if not self.lr > 0 or (self.lr_after is not None and not self.lr_after > 0):
            raise ValueError(f"Learning rates have to be positive, found {self.lr} and {self.lr_after}.")
        for name, rate in self.rates.items():
            if not rate > 0:
                raise ValueError(f"Learning rates have to be positive, found {rate} for arm {name!r}.")

    def check_arm(self, arm: Arm) -> None:
        """Check that an arm makes sense for these networks and data.

        Raises:
            ValueError: If it does not.
        """

    def starts(self, arm: Arm) -> int:
        """The epoch from which an arm trains on its own."""
        return arm.starts(self.split_epoch, self.epochs)

    def work(self, arms: Sequence[Arm]) -> int:
        """Epochs times networks that one seed takes: the dense network up to the last split, then each arm."""
        shared = max((self.starts(arm) for arm in arms if isinstance(arm, (Dense, Split))), default=0)
        return shared + sum(arm.networks * (self.epochs - self.starts(arm)) for arm in arms)
