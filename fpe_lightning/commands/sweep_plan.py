"""What a sweep tries: parameters by the keys of a config, and how to choose their values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import optuna

KEYS = {"name", "monitor", "mode", "trials", "sampler", "seed", "parameters"}
SAMPLERS = ("grid", "random", "tpe")


@dataclass(frozen=True)
class Plan:
    """A search over arguments of a run.

    Attributes:
        name: Names the study and its folder.
        parameters: By key of the command line, ``{"values": [...]}``, or ``{"low": a, "high": b}`` with ``log: true``
            or ``step``.
        monitor: The metric that counts; one of validation data.
        mode: ``"max"`` or ``"min"``.
        how: ``"grid"``, ``"random"`` or ``"tpe"``.
        trials: Number of trials of all processes together; all points of a grid.
        seed: Every draw depends on it and on the number of the trial.

    Example:
        >>> plan = Plan("widths", {"model.hidden": {"values": [4, 8]}}, how="grid", trials=2)
        >>> list(plan.grid())
        [{'model.hidden': 4}, {'model.hidden': 8}]
    """

    name: str
    parameters: Mapping[str, Mapping[str, Any]]
    monitor: str = "val/accuracy"
    mode: str = "max"
    how: str = "tpe"
    trials: int = 20
    seed: int = 0

    @staticmethod
    def read(path: Path) -> Plan:
        """Read a plan.

        Raises:
            ValueError: If there is no such file, or it is no plan.

        Example:
            >>> Plan.read(Path("no/such.yaml"))
            Traceback (most recent call last):
            ...
            ValueError: There is no sweep at no/such.yaml; check the path.
        """
        if not path.is_file():
            raise ValueError(f"There is no sweep at {path}; check the path.")
        try:
            found = yaml.safe_load(path.read_text())
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(found, dict) or not isinstance(found.get("parameters"), dict) or not found["parameters"]:
            raise ValueError(f"{path} has no `parameters`: a mapping from keys of a run to their values.")
        if unknown := set(found) - KEYS:
            raise ValueError(f"{path} has the unknown key `{min(unknown)}`; known: {', '.join(sorted(KEYS))}.")
        _check(path, found)
        plan = Plan(
            name=str(found.get("name", path.stem)),
            parameters=found["parameters"],
            monitor=found.get("monitor", "val/accuracy"),
            mode=found.get("mode", "max"),
            how=found.get("sampler", "tpe"),
            trials=found.get("trials", 20),
            seed=found.get("seed", 0),
        )
        points = len(list(plan.grid()))
        return Plan(**{**vars(plan), "trials": points}) if plan.how == "grid" else plan

    def grid(self) -> Iterator[dict[str, Any]]:
        """All points of a grid, the last parameter first to change; none for another sampler."""
        if self.how == "grid":
            values = [parameter["values"] for parameter in self.parameters.values()]
            for point in itertools.product(*values):
                yield dict(zip(self.parameters, point, strict=True))

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """The sampler of one trial."""
        import optuna

        kind = optuna.samplers.TPESampler if self.how == "tpe" else optuna.samplers.RandomSampler
        return kind(seed=self.seed + number)

    def suggest(self, trial: optuna.Trial) -> None:
        """Give each parameter of a trial a value."""
        for key, parameter in self.parameters.items():
            if "values" in parameter:
                trial.suggest_categorical(key, parameter["values"])
            elif isinstance(parameter["low"], int) and isinstance(parameter["high"], int):
                step, log = parameter.get("step", 1), parameter.get("log", False)
                trial.suggest_int(key, parameter["low"], parameter["high"], step=step, log=log)
            else:
                step, log = parameter.get("step"), parameter.get("log", False)
                trial.suggest_float(key, parameter["low"], parameter["high"], step=step, log=log)


def _check(path: Path, found: Mapping[str, Any]) -> None:
    """Refuse values that cannot be tried."""
    for key, choices in (("mode", ("max", "min")), ("sampler", SAMPLERS)):
        if key in found and found[key] not in choices:
            raise ValueError(f"{path}: `{key}` is one of {', '.join(choices)}, found {found[key]!r}.")
    for key in ("trials", "seed"):
        if key in found and (not isinstance(found[key], int) or found[key] < (key == "trials")):
            raise ValueError(f"{path}: `{key}` is a whole number, found {found[key]!r}.")
    for key, parameter in found["parameters"].items():
        given = parameter if isinstance(parameter, dict) else {}
        listed = isinstance(given.get("values"), list) and given["values"] and set(given) == {"values"}
        numbers = [given.get("low"), given.get("high")]
        ranged = all(isinstance(n, (int, float)) for n in numbers) and set(given) <= {"low", "high", "log", "step"}
        if not listed and not (ranged and given["low"] <= given["high"]):
            raise ValueError(f"{path}: `{key}` takes `values: [...]`, or `low:` and `high:`, found {parameter!r}.")
        if found.get("sampler") == "grid" and not listed:
            raise ValueError(f"{path}: a grid needs `values: [...]` for `{key}`, found {parameter!r}.")
