"""Rows of a CSV or Parquet file: a column of labels, and features in all others."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fpe_lightning.data.arrays import ArrayDataModule, Stage, Standardize, moments
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.extras import extra

Columns = dict[str, Sequence[object]]


class TableDataModule(ArrayDataModule):
    """Batches ``(features, class numbers)`` of a table.

    Without files for validation and test, rows of the first file are held out, with the class shares of all. Class
    numbers follow the sorted labels, as numbers where all of them are numbers.

    Args:
        path: A ``.csv`` file whose first line names the columns, or a ``.parquet`` file (extra ``tables``).
        label: The column of the labels.
        features: The columns of the features; None takes all others.
        val_path: A file of validation rows; None holds out ``val_fraction`` of the rows.
        test_path: A file of test rows; None holds out ``test_fraction`` of the rows.
        val_fraction: Share of the rows for validation.
        test_fraction: Share of the rows for the test.
        standardize: Whether to shift and scale each feature to mean 0 and standard deviation 1 over the training rows.
        batch_size: Training rows per batch on each process; None takes all rows.
        eval_batch_size: The same for validation, test and prediction.
        seed: Seed of the training order.
        split_seed: Seed of the rows that are held out; independent of ``seed``, so that all runs use the same rows.

    Raises:
        ValueError: If a share is out of range; on first use, if a file or a column is missing, or a cell is no number.

    Example:
        >>> TableDataModule("no/such.csv").num_features
        Traceback (most recent call last):
        ...
        ValueError: There is no table at no/such.csv; check the path.
    """

    def __init__(
        self,
        path: str | Path,
        label: str = "label",
        features: list[str] | None = None,
        val_path: str | Path | None = None,
        test_path: str | Path | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        standardize: bool = True,
        batch_size: int | None = 256,
        eval_batch_size: int | None = 1024,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed=seed)
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < share < 0.5:
                raise ValueError(f"`{name}` has to be between 0 and 0.5, found {share}.")
        self.save_hyperparameters(logger=False)
        self.paths: dict[Stage, str | Path | None] = {"train": path, "val": val_path, "test": test_path}
        self.label, self.features = label, features
        self.fractions: dict[Stage, float] = {"test": test_fraction, "val": val_fraction}
        self.standardize, self.split_seed = standardize, split_seed

    @cached_property
    def _tables(self) -> dict[Stage, Columns]:
        """Columns of each file that is given."""
        return {stage: read_table(Path(path), self.label) for stage, path in self.paths.items() if path is not None}

    @cached_property
    def _feature_names(self) -> list[str]:
        return self.features or [name for name in self._tables["train"] if name != self.label]

    @property
    @override
    def dims(self) -> tuple[int]:
        """``(features,)``."""
        return (len(self._feature_names),)

    @cached_property
    @override
    def class_names(self) -> tuple[str, ...]:
        """The labels of the training file, sorted."""
        labels = {str(label) for label in self._tables["train"][self.label]}
        try:
            return tuple(sorted(labels, key=float))
        except ValueError:
            return tuple(sorted(labels))

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read the files, and hold out rows for the stages without a file."""
        x, y = self._arrays("train")
        rest = torch.arange(len(y))
        for name, share in self.fractions.items():
            if self.paths[name] is not None:
                self.arrays[name] = self._arrays(name)
                continue
            held = rest[stratified_choice(y[rest], max(1, round(share * len(y))), self.split_seed)]
            self.arrays[name] = x[held], y[held]
            rest = rest[~torch.isin(rest, held)]
        self.arrays["train"] = x[rest], y[rest]
        if self.standardize:
            self.transform = Standardize(*moments(x[rest]))

    def _arrays(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Float32 features ``(rows, features)`` and int64 class numbers ``(rows,)`` of one file."""
        path, table = self.paths[stage], self._tables[stage]
        if missing := [name for name in (*self._feature_names, self.label) if name not in table]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(table)}.")
        numbers = {name: number for number, name in enumerate(self.class_names)}
        if unknown := {str(label) for label in table[self.label]} - set(numbers):
            raise ValueError(f"{path} has the label {min(unknown)!r}, which no training row has.")
        columns = [_numbers(table[name], name, path) for name in self._feature_names]
        labels = [numbers[str(label)] for label in table[self.label]]
        return torch.from_numpy(np.stack(columns, axis=1)), torch.tensor(labels)


def read_table(path: Path, label: str) -> Columns:
    """The columns of a CSV or Parquet file, in their order.

    Raises:
        ValueError: If there is no such file, it is of another kind, or it has no rows or no such label.
        ModuleNotFoundError: If the file is Parquet and pyarrow is not installed.
    """
    if not path.is_file():
        raise ValueError(f"There is no table at {path}; check the path.")
    if path.suffix == ".parquet":
        with extra("tables", "A Parquet file"):
            from pyarrow import parquet
        columns: Columns = parquet.read_table(path).to_pydict()
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
        head, body = rows[0] if rows else [], [row for row in rows[1:] if row]
        if uneven := next((n for n, row in enumerate(body, 2) if len(row) != len(head)), None):
            raise ValueError(f"{path} has {len(head)} columns, and its row {uneven} has {len(body[uneven - 2])} cells.")
        columns = dict(zip(head, zip(*body, strict=True), strict=True)) if body else {}
    else:
        raise ValueError(f"A table is a .csv or a .parquet file, found {path}.")
    if label not in columns:
        raise ValueError(f"{path} has no rows, or no column {label!r}; it has {', '.join(columns) or 'no columns'}.")
    return columns


def _numbers(cells: Sequence[object], name: str, path: str | Path | None) -> np.ndarray:
    """A column as float32; no cell may be empty."""
    try:
        column = np.asarray(cells, dtype=np.float32)
        bad = None if np.isfinite(column).all() else int(np.flatnonzero(~np.isfinite(column))[0])
    except (TypeError, ValueError):
        bad = next(n for n, cell in enumerate(cells) if not _is_number(cell))
    if bad is not None:
        raise ValueError(
            f"{path} has {cells[bad]!r} in row {bad + 1} of the column {name!r}, which is no number: leave out the "
            "column by `features=`, or fill the cell."
        )
    return column


def _is_number(cell: object) -> bool:
    try:
        return bool(np.isfinite(np.float32(cell)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
