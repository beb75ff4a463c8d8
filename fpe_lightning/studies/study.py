"""A study: settings x arms x seeds, and how much work they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fpe_lightning.networks import WideSparseMLP
from fpe_lightning.studies.arms import Arm, arms_named
from fpe_lightning.studies.boolean import Regime
from fpe_lightning.studies.errors import StudyError
from fpe_lightning.studies.stacked import train_together


@dataclass(frozen=True)
class BooleanStudy:
    """The Boolean task: arms at equally many non-zeros, in several settings.

    Attributes:
        settings: Regimes by name.
        arms: Names of arms, in the order of the table; see ``fpe_lightning.studies.arms``.
        seeds: Number of seeds; each draws clauses, samples, initial weights and masks.
        first_seed: The first of them; choose recipes on other seeds than those that are reported.
        block: Seeds that train together; a run that is killed loses the block at work.
    """

    settings: dict[str, Regime]
    arms: list[str]
    seeds: int = 24
    first_seed: int = 0
    block: int = 4

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> BooleanStudy:
        """A study from parsed options, whose settings are mappings of a regime's attributes."""
        settings = {name: Regime(**dict(values.items())) for name, values in (options["settings"] or {}).items()}
        return cls(**{**options, "settings": settings})

    def check(self) -> None:
        """Check that there is something to run, and that it can run.

        Raises:
            StudyError: If the grid is empty, an arm does not exist, or a split is not within the epochs.

        Example:
            >>> BooleanStudy({"A": Regime()}, ["dense"]).check()
        """
        if not self.settings or not self.arms or self.seeds < 1:
            raise StudyError(
                f"The grid is empty: {len(self.settings)} settings x {len(self.arms)} arms x {self.seeds} seeds; "
                "give at least one of each."
            )
        if self.block < 1 or self.first_seed < 0:
            raise StudyError(
                f"`block` has to be at least 1 and `first_seed` at least 0, found {self.block} and {self.first_seed}."
            )
        for name, arm in self.named_arms().items():
            for setting, regime in self.settings.items():
                if not 0 <= regime.starts(arm) <= regime.epochs:
                    raise StudyError(
                        f"Arm {name!r} splits at epoch {regime.starts(arm)}, but setting {setting!r} has "
                        f"{regime.epochs} epochs; drop one of them."
                    )

    def named_arms(self) -> dict[str, Arm]:
        """The arms of the grid."""
        return arms_named(self.arms)

    def cells(self) -> list[tuple[str, str, int]]:
        """Setting, arm and seed of every run.

        Example:
            >>> BooleanStudy({"A": Regime()}, ["dense"], seeds=2, first_seed=5).cells()
            [('A', 'dense', 5), ('A', 'dense', 6)]
        """
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(setting, arm, seed) for setting in self.settings for seed in seeds for arm in self.arms]

    def blocks(self, done: set[tuple[str, str, int]]) -> list[Block]:
        """What is left to run, in blocks of seeds that lack the same arms."""
        missing: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for setting in self.settings:
            for seed in range(self.first_seed, self.first_seed + self.seeds):
                if lacking := tuple(arm for arm in self.arms if (setting, arm, seed) not in done):
                    missing.setdefault((setting, lacking), []).append(seed)
        blocks = [
            Block(setting, self.settings[setting], arms_named(list(arms)), tuple(seeds[i : i + self.block]))
            for (setting, arms), seeds in missing.items()
            for i in range(0, len(seeds), self.block)
        ]
        # All settings take turns, so that a study that is stopped early holds some seeds of each.
        return sorted(blocks, key=lambda block: block.seeds[0])


@dataclass(frozen=True)
class Block:
    """Seeds of one setting that train together.

    Attributes:
        setting: Its name.
        regime: What it is.
        arms: By name.
        seeds: The seeds.
    """

    setting: str
    regime: Regime
    arms: dict[str, Arm]
    seeds: tuple[int, ...]

    @property
    def work(self) -> int:
        """Epochs times networks."""
        return len(self.seeds) * self.regime.work(list(self.arms.values()))

    @property
    def cells(self) -> int:
        """Number of runs."""
        return len(self.seeds) * len(self.arms)


def seconds_of(blocks: list[Block]) -> float:
    """Estimate how long blocks take on one process, by training wide networks of each setting for a moment."""
    rates: dict[Regime, float] = {}
    for block in blocks:
        if block.regime not in rates:
            rates[block.regime] = _seconds_an_epoch(block.regime)
    return sum(block.work * rates[block.regime] for block in blocks)


def _seconds_an_epoch(regime: Regime, networks: int = 16, epochs: int = 30) -> float:
    x, truth = regime.task(0).train
    with torch.random.fork_rng(devices=[]):
        models = [WideSparseMLP(regime.inputs, regime.hidden, 1, regime.alpha) for _ in range(networks)]
    optimizers = [torch.optim.Adam(model.parameters(), fused=True) for model in models]
    data = x[None], truth.float()[None, None]
    train_together(models, optimizers, *data, nn.functional.binary_cross_entropy_with_logits, 3)
    began = time.perf_counter()
    train_together(models, optimizers, *data, nn.functional.binary_cross_entropy_with_logits, epochs)
    return (time.perf_counter() - began) / networks / epochs


STUDIES: dict[str, type[BooleanStudy]] = {"boolean": BooleanStudy}
"""Studies by name."""
