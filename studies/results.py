"""The folder of a study: one CSV row a run, appended under a lock, and the config of the study."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock

from fpe_lightning import __version__
from studies.errors import StudyError


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        arm: Label of the arm.
        seed: Seed of clauses or data, initial weights and masks.
        status: ``"done"`` or ``"failed"``.
        why: Of a failed run.
        nonzeros: Parameters that the structure lets be non-zero, biases included.
        train: Accuracy on the training samples at the end, in [0, 1].
        val: On the validation samples.
        test: On the test samples.
        seconds: CPU time, an even share of that of the networks that trained together.
        setting: Name of the setting.
        version: Of this package, where the run was made.
        torch: Version of torch, there.
        config: The resolved setting and arm, as JSON.
        measures: Further measures of its setting, by name; a column each.
    """

    arm: str
    seed: int
    status: str
    why: str
    nonzeros: int
    train: float
    val: float
    test: float
    seconds: float
    setting: str = ""
    version: str = ""
    torch: str = ""
    config: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str, int]:
        """Setting, arm and seed."""
        return self.setting, self.arm, self.seed


PLAIN = [field for field in fields(Row) if field.name != "measures"]
COLUMNS = [field.name for field in PLAIN]


class Results:
    """The results of one study with one config.

    Args:
        folder: Made where it is missing.
        study: Name of the study.
        config: The resolved config, of plain values; a folder of another config is refused.
        measures: Names of the measures that rows may hold besides accuracy.

    Raises:
        StudyError: If the folder holds another study, config or version.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     results = Results(Path(folder), "boolean", {"seeds": 2})
        ...     results.append([Row("dense", 0, "done", "", 209, 0.9, 0.8, 0.8, 1.0, "A")])
        ...     [row.cell for row in results.rows()]
        [('A', 'dense', 0)]
    """

    def __init__(self, folder: Path, study: str, config: dict[str, Any], measures: Sequence[str] = ()) -> None:
        self.folder, self.path, self.measures = folder, folder / "results.csv", list(measures)
        made_with = {"study": study, "version": __version__, "config": config}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(
                f"`{folder}` cannot be a folder of results: {error.strerror}; give another `--output`."
            ) from error
        self._lock = FileLock(folder / ".lock")
        with self._lock:
            about = folder / "study.yaml"
            if not about.exists():
                if any(path.name != ".lock" for path in folder.iterdir()):
                    raise StudyError(f"`{folder}` holds files that are no study's; give another `--output`.")
                # A file is renamed when it is complete, so that a kill leaves no half of one.
                (folder / "study.part").write_text(
                    yaml.safe_dump({**made_with, "torch": str(torch.__version__)}, sort_keys=False)
                )
                os.replace(folder / "study.part", about)
            found = _about(about)
        for key, wanted in made_with.items():
            if found.get(key) != wanted:
                raise StudyError(
                    f"`{folder}` holds results of another {key}{_difference(found.get(key), wanted)}; "
                    "give another `--output`, or remove the folder."
                )

    def rows(self) -> list[Row]:
        """All finished rows; half a row that a kill left behind is not one.

        Raises:
            StudyError: If a whole row cannot be read: it was written by something else.
        """
        with self._lock:
            text = self.path.read_text() if self.path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        try:
            return [_parsed(record) for record in csv.DictReader(io.StringIO(complete))]
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"`{self.path}` holds a row that is no run of this version ({type(error).__name__}: {error}); mend it, "
                "or give another `--output`."
            ) from error

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, each cell at most once, so that two processes at work on one folder do no harm.

        Raises:
            ValueError: If a row holds a measure that has no column.
        """
        if unknown := sorted({name for row in rows for name in row.measures} - set(self.measures)):
            raise ValueError(f"The measure {unknown[0]!r} has no column in `{self.path}`; declare it in the setting.")
        with self._lock:
            text = self.path.read_text() if self.path.exists() else ""
            complete = text[: text.rfind("\n") + 1]
            done = {_parsed(record).cell for record in csv.DictReader(io.StringIO(complete))}
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            if not complete:
                writer.writerow([*COLUMNS, *self.measures])
            # One line a row, whatever a message holds.
            writer.writerows(
                [
                    *(str(getattr(row, name)).replace("\n", " ") for name in COLUMNS),
                    *(str(row.measures.get(name, "")) for name in self.measures),
                ]
                for row in rows
                if row.cell not in done
            )
            with self.path.open("r+" if self.path.exists() else "w") as file:
                file.truncate(len(complete.encode()))
                file.seek(0, os.SEEK_END)
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())


def described(value: object) -> Any:
    """An object as plain values, as a config spells it.

    Example:
        >>> import fpe_lightning as fpe
        >>> described(fpe.partitions.Shared(groups=4))
        {'class_path': 'Shared', 'init_args': {'groups': 4}}
    """
    if is_dataclass(value) and not isinstance(value, type):
        arguments = {each.name: described(getattr(value, each.name)) for each in fields(value) if each.init}
        return {"class_path": type(value).__name__, "init_args": arguments}
    if isinstance(value, (list, tuple)):
        return [described(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _about(path: Path) -> dict[str, Any]:
    """Study, version and config that a folder was made with."""
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise StudyError(f"`{path}` is damaged, so its folder cannot go on; give another `--output`.")
    return found


def _parsed(record: dict[str, str]) -> Row:
    kinds = {"str": str, "int": int, "float": float}
    plain = {field.name: kinds[str(field.type)](record[field.name]) for field in PLAIN}
    return Row(**plain, measures={key: float(value) for key, value in record.items() if key not in COLUMNS and value})


def _difference(found: object, wanted: object, path: str = "") -> str:
    """Where two values differ first, as `` at `settings.A.lr`: 1, asked for 2``."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(key for key in [*wanted, *found] if found.get(key) != wanted.get(key))
        return _difference(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
    return f"{f' at `{path}`' if path else ''}: {found!r}, asked for {wanted!r}"
