"""The runs of a study, as its reports read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from studies.arms import Arm, Split
from studies.results import COLUMNS, Row

if TYPE_CHECKING:
    from studies.setting import Setting


@dataclass(frozen=True)
class Runs:
    """Rows with the arms and the settings they are of.

    Attributes:
        rows: One for each setting, arm and seed.
        arms: By label.
        settings: By name.

    Example:
        >>> from studies.arms import Dense
        >>> seen = {"cosine": 0.5}
        >>> rows = [Row("dense", seed, "done", "", 209, 1, 0.8, 0.8, 1, "A", measures=seen) for seed in (3, 4)]
        >>> runs = Runs(rows, {"dense": Dense()})
        >>> runs.percent("A", "dense"), runs.values("A", "dense", "cosine")
        ({3: 80.0, 4: 80.0}, {3: 0.5, 4: 0.5})
    """

    rows: Sequence[Row]
    arms: Mapping[str, Arm]
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def setting_names(self) -> list[str]:
        """Settings that have rows, in the order of the rows."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    @property
    def labels(self) -> list[str]:
        """Labels of arms that have rows, in the order of the rows."""
        return list(dict.fromkeys(row.arm for row in self.rows))

    @property
    def splits(self) -> dict[str, Split]:
        """The arms among them that split, by label."""
        found = {label: self.arms[label] for label in self.labels}
        return {label: arm for label, arm in found.items() if isinstance(arm, Split)}

    def of(self, *settings: str) -> Runs:
        """The runs of some settings alone."""
        return replace(self, rows=[row for row in self.rows if row.setting in settings])

    def shown(self, label: str) -> str:
        """A label with an asterisk where the arm spends more non-zeros than the others."""
        return label + "*" * self.arms[label].marked

    def values(self, setting: str, label: str, part: str) -> dict[int, float]:
        """A column or a measure by seed, of the runs that did not fail and have it."""
        own = [row for row in self.rows if (row.setting, row.arm, row.status) == (setting, label, "done")]
        if part in COLUMNS:
            return {row.seed: getattr(row, part) for row in own}
        return {row.seed: row.measures[part] for row in own if part in row.measures}

    def percent(self, setting: str, label: str, part: str = "test") -> dict[int, float]:
        """An accuracy or a share by seed, in percent."""
        return {seed: 100 * value for seed, value in self.values(setting, label, part).items()}

    def measured(self, prefix: str = "") -> list[str]:
        """Names of measures that begin with a prefix, in the order of the rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row.measures if name.startswith(prefix)))
