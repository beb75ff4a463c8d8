"""``python -m studies.rule FOLDER``: fit the rule of ``fpe.advise_sites`` to cells, and test it by leaving sets out."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from studies.sets import set_named
from studies.tables import Table, as_markdown

FEWEST = (0, 4, 6, 8, 12, 16, 20, 24)
"""Bounds of the inputs of a child that are tried."""
SHARES = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.2, 9.0)
"""Bounds of the copies for each incoming weight that are tried."""
Bounds = tuple[int, float]
"""Fewest inputs of a child, and most copies for each incoming weight."""


@dataclass(frozen=True)
class Cell:
    """One split of one network.

    Attributes:
        data: Name of the data set.
        hidden: Neurons before the split.
        alpha: Children of each.
        child: Inputs of a child.
        share: Copies for each incoming weight.
        gain: Mean test accuracy minus that of the dense network, in points.
    """

    data: str
    hidden: int
    alpha: int
    child: float
    share: float
    gain: float


def cells_of(rows: Iterable[Mapping[str, str]], sizes: Mapping[str, tuple[int, int]]) -> list[Cell]:
    """The cells of a study's rows.

    Args:
        rows: Of arms ``dense``, ``alpha_2`` and so on, and ``paper_2``, which counts where the other failed.
        sizes: Inputs and outputs of each data set.

    Example:
        >>> config = '{"setting": {"data": "a", "hidden": 4}}'
        >>> row = {"arm": "dense", "status": "done", "test": "0.5", "config": config}
        >>> rows = [row, {**row, "arm": "alpha_2", "test": "0.6"}]
        >>> cells_of(rows, {"a": (64, 10)})[0].child
        32.0
    """
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        setting = json.loads(row["config"])["setting"]
        if row["status"] == "done":
            found.setdefault((setting["data"], setting["hidden"], row["arm"]), []).append(100 * float(row["test"]))
    mean = {key: sum(values) / len(values) for key, values in found.items()}
    cells = {}
    for (data, hidden, arm), accuracy in mean.items():
        named = re.fullmatch(r"(alpha|paper)_(\d+)", arm)
        if named is None or (named[1] == "paper" and (data, hidden, f"alpha_{named[2]}") in mean):
            continue
        (inputs, outputs), alpha = sizes[data], int(named[2])
        gain = accuracy - mean[data, hidden, "dense"]
        cells[data, hidden, alpha] = Cell(
            data, hidden, alpha, inputs / alpha, (alpha - 1) * (outputs + 1) / inputs, gain
        )
    return list(cells.values())


def confusion(cells: Iterable[Cell], bounds: Bounds) -> tuple[int, int, int, int]:
    """Losses that are warned of, silent losses, gains that are warned of, silent gains."""
    counts = [0, 0, 0, 0]
    for cell in cells:
        warned = cell.child < bounds[0] or cell.share > bounds[1]
        counts[2 * (cell.gain >= 0) + (not warned)] += 1
    return counts[0], counts[1], counts[2], counts[3]


def fitted(cells: Sequence[Cell]) -> Bounds:
    """The bounds of best mean rate over losses and gains; the first at a tie."""

    def score(bounds: Bounds) -> float:
        warned, silent, wrong, right = confusion(cells, bounds)
        return warned / max(warned + silent, 1) + right / max(wrong + right, 1)

    return max(itertools.product(FEWEST, SHARES), key=score)


def tables_of(cells: Sequence[Cell]) -> list[Table]:
    """The rule's confusion when it is fitted to all sets but one and tested on that one; and all cells."""
    lines, total = [], (0, 0, 0, 0)
    for data in dict.fromkeys(cell.data for cell in cells):
        bounds = fitted([cell for cell in cells if cell.data != data])
        counts = confusion([cell for cell in cells if cell.data == data], bounds)
        total = tuple(map(sum, zip(total, counts, strict=True)))  # type: ignore[assignment]
        lines.append((data, f"{bounds[0]}, {bounds[1]}", *map(str, counts)))
    lines.append(("all", "-", *map(str, total)))
    header = ("left out", "bounds", "losses warned", "silent", "gains warned", "silent")
    every = [
        (
            cell.data,
            str(cell.hidden),
            str(cell.alpha),
            f"{cell.child:.3g}",
            f"{cell.share:.2f}",
            f"{cell.gain:+.1f}",
            "warns" if cell.child < 16 or cell.share > 0.75 else "",
        )
        for cell in sorted(cells, key=lambda cell: cell.gain)
    ]
    head = ("data", "neurons", "alpha", "inputs a child", "copies a weight", "gain over dense", "rule")
    return [Table("Bounds fitted without a set, tested on it", header, lines), Table("Cells", head, every)]


def main(folders: Sequence[str]) -> int:
    """Print both tables.

    Args:
        folders: Of results.
    """
    rows = [row for folder in folders for row in csv.DictReader((Path(folder) / "results.csv").open())]
    names = {json.loads(row["config"])["setting"]["data"] for row in rows}
    sizes = {name: (set_named(name).inputs, set_named(name).outputs) for name in sorted(names)}
    print(as_markdown(tables_of(cells_of(rows, sizes))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
