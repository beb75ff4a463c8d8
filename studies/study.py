"""A study: settings x arms x seeds, and how much work they are."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import fpe_lightning as fpe
from fpe_lightning.pruning import FinalizingRule, resolve_pruning
from studies.arms import Arm, Split, WideSparse
from studies.errors import StudyError
from studies.from_scratch import outline
from studies.results import described
from studies.setting import Setting
from studies.training import run_block


@dataclass(frozen=True)
class Study:
    """Arms at equally many non-zeros, in several settings.

    Attributes:
        settings: By name.
        arms: By label, in the order of the table; see :mod:`studies.arms`. In YAML an arm is a class, such as
            ``dense: Dense``, with ``init_args`` where it has some; a mapping without a class is a ``Split``.
        seeds: Number of seeds; each draws initial weights and masks, and data where the setting draws them.
        first_seed: The first of them; choose recipes on other seeds than those that are reported.
        block: Seeds that train together; a run that is killed loses the block at work.
    """

    settings: Mapping[str, Setting]
    arms: Mapping[str, Split | Arm]
    seeds: int = 24
    first_seed: int = 0
    block: int = 4

    def check(self) -> None:
        """Check that there is something to run, and that it can run.

        Raises:
            StudyError: If the grid is empty, a setting or an arm cannot be, or a split is not within the epochs.

        Example:
            >>> from studies.arms import Dense
            >>> Study({"A": Setting()}, {"dense": Dense()}).check()
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
        for name, setting in self.settings.items():
            try:
                setting.check()
            except ValueError as error:
                raise StudyError(f"Setting {name!r} cannot be: {error}") from error
            if strangers := [arm for arm in setting.rates if arm not in self.arms]:
                raise StudyError(
                    f"Setting {name!r} has a rate for {strangers[0]!r}, which is no arm of the study; its arms are "
                    f"{', '.join(self.arms)}."
                )
            for label, arm in self.arms.items():
                try:
                    _check_arm(arm, setting)
                except ValueError as error:
                    raise StudyError(f"Arm {label!r} cannot be in setting {name!r}: {error}") from error

    def prepare(self) -> None:
        """Find the data of every setting, and check that its networks fit them.

        Raises:
            StudyError: If they cannot be had, or do not fit.
        """
        for name, setting in self.settings.items():
            try:
                task = setting.task(self.first_seed)
            except (ValueError, OSError, RuntimeError) as error:
                raise StudyError(f"Setting {name!r} has no data: {' '.join(str(error).split())}") from error
            try:
                outline(setting, task, setting.widths())
            except ValueError as error:
                raise StudyError(f"Setting {name!r} cannot be: {error}") from error

    def measures(self) -> list[str]:
        """Names of all measures of the settings, besides accuracy."""
        return list(dict.fromkeys(name for setting in self.settings.values() for name in setting.measures))

    def config(self) -> dict[str, Any]:
        """All that results depend on, as plain values."""
        arms = {label: described(arm) for label, arm in self.arms.items()}
        return {**asdict(replace(self, arms={})), "arms": arms}

    def cells(self) -> list[tuple[str, str, int]]:
        """Setting, arm and seed of every run.

        Example:
            >>> from studies.arms import Dense
            >>> Study({"A": Setting()}, {"dense": Dense()}, seeds=2, first_seed=5).cells()
            [('A', 'dense', 5), ('A', 'dense', 6)]
        """
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [(setting, arm, seed) for setting in self.settings for seed in seeds for arm in self.arms]

    def blocks(self, done: set[tuple[str, str, int]]) -> list[Block]:
        """The runs that are left, in blocks of seeds that lack the same arms, which train at one rate."""
        missing: dict[tuple[str, float, tuple[str, ...]], list[int]] = {}
        for name, setting in self.settings.items():
            for seed in range(self.first_seed, self.first_seed + self.seeds):
                lacking: dict[float, list[str]] = {}
                for arm in self.arms:
                    if (name, arm, seed) not in done:
                        lacking.setdefault(setting.rates.get(arm, setting.lr), []).append(arm)
                for rate, arms in lacking.items():
                    missing.setdefault((name, rate, tuple(arms)), []).append(seed)
        blocks = [
            Block(
                name,
                replace(self.settings[name], lr=rate),
                {label: self.arms[label] for label in labels},
                tuple(seeds[i : i + self.block]),
            )
            for (name, rate, labels), seeds in missing.items()
            for i in range(0, len(seeds), self.block)
        ]
        # All settings take turns, so that a study that is stopped early holds some seeds of each.
        return sorted(blocks, key=lambda block: block.seeds[0])


def _check_arm(arm: Arm, setting: Setting) -> None:
    """Check that an arm makes sense in a setting.

    Raises:
        ValueError: If it does not.
    """
    setting.check_arm(arm)
    start, epochs = setting.starts(arm), setting.epochs
    if not 0 <= start <= epochs:
        raise ValueError(f"it splits at epoch {start}, but there are {epochs} epochs; drop one of them.")
    if isinstance(arm, Split):
        arm.expansion_of(setting.alpha, 0)  # raises where it cannot give a neuron so many children
        rules = [each.prune for each in arm.rules if isinstance(each, fpe.Expansion)]
        if not isinstance(setting.hidden, int) and any(isinstance(resolve_pruning(r), FinalizingRule) for r in rules):
            raise ValueError("it refits one hidden layer, but there are several.")
        if arm.then is not None and not start < arm.then.at <= epochs:
            raise ValueError(
                f"it splits again at epoch {arm.then.at}, but first at {start} of {epochs} epochs; drop one of them."
            )


def on_grid(settings: Mapping[str, Setting], grids: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, Setting]:
    """Every setting with every combination of the values of each grid.

    Args:
        settings: By name.
        grids: Each maps attributes to values; none leaves the settings as they are.

    Returns:
        Settings whose names tell the values, such as ``"A hidden=4 alpha=2"``.

    Raises:
        StudyError: If an attribute does not exist.

    Example:
        >>> list(on_grid({"A": Setting()}, [{"hidden": [4, 8], "alpha": [2]}, {"lr": [0.1]}]))
        ['A hidden=4 alpha=2', 'A hidden=8 alpha=2', 'A lr=0.1']
    """
    found: dict[str, Setting] = {}
    for (name, setting), grid in itertools.product(settings.items(), grids):
        for key in grid:
            if key not in setting.__dataclass_fields__:
                raise StudyError(f"Unknown key `{key}` of a grid. Known: {', '.join(setting.__dataclass_fields__)}.")
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            label = " ".join([name, *(f"{key}={value}" for key, value in chosen.items())])
            found[label] = replace(setting, **chosen)
    return found if grids else dict(settings)


@dataclass(frozen=True)
class Block:
    """Seeds of one setting that train together.

    Attributes:
        name: Name of the setting.
        setting: The setting.
        arms: By label.
        seeds: The seeds.
    """

    name: str
    setting: Setting
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]

    @property
    def work(self) -> int:
        """Epochs times networks."""
        return len(self.seeds) * self.setting.work(list(self.arms.values()))

    @property
    def cells(self) -> int:
        """Number of runs."""
        return len(self.seeds) * len(self.arms)


def seconds_of(blocks: list[Block]) -> float:
    """Estimate how long blocks take on one process, by training wide networks of each setting for a moment."""
    rates: dict[str, float] = {}
    for block in blocks:
        if block.name not in rates:
            rates[block.name] = _seconds_an_epoch(block.setting)
    return sum(block.work * rates[block.name] for block in blocks)


def _seconds_an_epoch(setting: Setting, networks: int = 8) -> float:
    """Of one wide network among several, without the time before the first epoch."""
    arms = {str(i): WideSparse() for i in range(networks)}
    offline: dict[str, Any] = {"download": False} if "download" in setting.__dataclass_fields__ else {}
    took = []
    epochs = (1, 31) if setting.batch_size is None else (1, 3)
    for count in epochs:
        brief = replace(setting, epochs=count, split=0, switch=None, **offline)
        began = time.process_time()
        run_block(brief, arms, [0])
        took.append(time.process_time() - began)
    return max(took[1] - took[0], 0.0) / networks / (epochs[1] - epochs[0])
