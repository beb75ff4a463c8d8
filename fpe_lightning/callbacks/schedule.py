"""When to split: at epochs, at optimizer steps, after fractions of the run, or when a trigger says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException


@runtime_checkable
class ExpansionTrigger(Protocol):
    """Decides when to split. It is asked once an epoch, before the first batch, on every process.

    A trigger with state defines ``state_dict`` and ``load_state_dict`` too, with plain types, so that runs can resume.
    """

    def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether to split now."""
        ...


class SaturationTrigger:
    """Split when a monitored metric has stopped improving.

    Args:
        monitor: Name of a logged metric, such as ``"val/accuracy"``.
        mode: ``"max"`` where more is better, ``"min"`` where less is.
        patience: Epochs without improvement before the split, at least 1.
        min_delta: What counts as an improvement, in units of the metric; at least 0.

    Raises:
        MisconfigurationException: If an argument is bad, or, while training, if the metric is not logged.

    Example:
        >>> trigger = SaturationTrigger("val/accuracy", patience=2)
        >>> [trigger.saturated(value) for value in (0.5, 0.6, 0.6, 0.6)]
        [False, False, False, True]
    """

    def __init__(self, monitor: str, mode: str = "max", patience: int = 3, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise MisconfigurationException(f'`mode` has to be "min" or "max", found {mode!r}.')
        if patience < 1 or min_delta < 0:
            raise MisconfigurationException(
                f"`patience` has to be at least 1 and `min_delta` at least 0, found {patience} and {min_delta}."
            )
        self.monitor, self.mode, self.patience, self.min_delta = monitor, mode, patience, min_delta
        self.best = -math.inf
        self.waited = 0

    def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Look at the newest value of the metric, from the second epoch on."""
        if trainer.current_epoch == 0:
            return False
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise MisconfigurationException(
                f"SaturationTrigger monitors {self.monitor!r}, which is not logged. Logged metrics: {logged}."
            )
        return self.saturated(float(value))

    def saturated(self, value: float) -> bool:
        """Take in one value; True, and start over, if it is the ``patience``-th in a row without improvement."""
        value = value if self.mode == "max" else -value
        if value > self.best + self.min_delta:
            self.best, self.waited = value, 0
            return False
        self.waited += 1
        if self.waited < self.patience:
            return False
        self.best, self.waited = -math.inf, 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and the epochs since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]


class Schedule:
    """The moments of all splits of one callback; how many are over is kept by the callback.

    Args:
        epoch: One or several epochs, counted from 0, at whose first batch to split.
        step: One or several numbers of optimizer steps after which to split.
        fraction: One or several fractions of the run's optimizer steps, in [0, 1), after which to split.
        trigger: Decides by itself; asked once an epoch.
        max_splits: With a trigger, how often to split at most.

    Raises:
        MisconfigurationException: If not exactly one moment is given, or it is no such number.
    """

    def __init__(
        self,
        epoch: int | Sequence[int] | None = None,
        step: int | Sequence[int] | None = None,
        fraction: float | Sequence[float] | None = None,
        trigger: ExpansionTrigger | None = None,
        max_splits: int = 1,
    ) -> None:
        given = {"epoch": epoch, "step": step, "fraction": fraction, "trigger": trigger}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise MisconfigurationException(
                "ExpansionCallback splits at `epoch`, `step`, `fraction` or by `trigger`, exactly one of them; found "
                f"{' and '.join(f'`{name}`' for name in named) or 'none'}."
            )
        (self.kind,) = named
        self.trigger = trigger
        self.moments = [] if trigger is not None else self._moments(given[self.kind])
        if max_splits < 1:
            raise MisconfigurationException(f"`max_splits` has to be at least 1, found {max_splits}.")
        if trigger is not None and not isinstance(trigger, ExpansionTrigger):
            raise MisconfigurationException(
                f"`trigger` needs a method `should_expand(trainer, pl_module)`, found {type(trigger).__name__}."
            )
        self.count = max_splits if trigger is not None else len(self.moments)

    def _moments(self, value: Any) -> list[float]:
        moments = list(value) if isinstance(value, Sequence) else [value]
        whole = self.kind != "fraction"
        bad = [
            moment
            for moment in moments
            if isinstance(moment, bool)
            or not isinstance(moment, int if whole else (int, float))
            or not (moment >= 0 if whole else 0 <= moment < 1)
        ]
        if bad or not moments or moments != sorted(set(moments)):
            wanted = "integers of at least 0" if whole else "numbers in [0, 1)"
            raise MisconfigurationException(
                f"`{self.kind}` takes {wanted}, one or several in rising order; found {value!r}."
            )
        return moments

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse a moment that the run never reaches.

        Raises:
            MisconfigurationException: With the moment and the end of the run.
        """
        if trainer.fast_dev_run or self.kind in ("trigger", "fraction"):
            return
        end = (trainer.max_epochs or -1) if self.kind == "epoch" else trainer.max_steps
        late = [moment for moment in self.moments if moment >= end >= 0]
        if late:
            raise MisconfigurationException(
                f"`{self.kind}={late[0]}` is never reached: the run ends at max_{self.kind}s={end}, and counting starts "
                "at 0."
            )

    def due(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch_idx: int, done: int) -> bool:
        """Whether the next split is due before this batch, the same on every process."""
        if done >= self.count:
            return False
        if self.trigger is not None:
            asked = batch_idx == 0 and self.trigger.should_expand(trainer, pl_module)
            return batch_idx == 0 and trainer.strategy.reduce_boolean_decision(asked, all=False)
        if self.kind == "epoch":
            return trainer.current_epoch >= self.moments[done]
        if self.kind == "step":
            return trainer.global_step >= self.moments[done]
        total = trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise MisconfigurationException("`fraction` needs a run with an end: set `max_epochs` or `max_steps`.")
        return trainer.global_step >= math.ceil(self.moments[done] * total)
