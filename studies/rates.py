"""``python -m studies.rates FOLDER``: the learning rate of each arm, chosen by validation accuracy, as settings."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from studies.errors import StudyError
from studies.overview import values_of


def chosen(rows: Iterable[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """The rate of best mean validation accuracy of each setting and arm; the lower one at a tie.

    Args:
        rows: Of a study whose settings differ in ``lr``, such as ``"digits hidden=8 lr=0.01"``.

    Returns:
        For each setting, without its rate, the rate of each arm; arms whose runs all failed have none.

    Example:
        >>> chosen([{"setting": f"A hidden=8 lr={lr}", "arm": "dense", "val": "0.5"} for lr in (0.1, 0.01)])
        {'A hidden=8': {'dense': 0.01}}
    """
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in rows:
        base, numbers = values_of(row["setting"])
        if "lr" not in numbers:
            raise StudyError(f"The setting {row['setting']!r} has no `lr` in its name; run a grid of rates first.")
        others = " ".join([base, *(f"{key}={value:g}" for key, value in numbers.items() if key != "lr")])
        if row["val"] != "nan":
            found.setdefault((others, row["arm"]), {}).setdefault(numbers["lr"], []).append(float(row["val"]))
    best: dict[str, dict[str, float]] = {}
    for (setting, arm), rates in found.items():
        best.setdefault(setting, {})[arm] = max(sorted(rates), key=lambda rate: sum(rates[rate]) / len(rates[rate]))
    return best


def main(folders: Sequence[str]) -> int:
    """Print the settings of a frozen config, which lack the keys that all rates shared.

    Args:
        folders: Of results.
    """
    rows = [row for folder in folders for row in csv.DictReader((Path(folder) / "results.csv").open())]
    for setting, rates in chosen(rows).items():
        numbers = "".join(f"{key}: {value:g}, " for key, value in values_of(setting)[1].items())
        print(f'  "{setting}": {{{numbers}rates: {{{", ".join(f"{arm}: {rate:g}" for arm, rate in rates.items())}}}}}')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
