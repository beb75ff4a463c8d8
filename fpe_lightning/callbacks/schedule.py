"""The moments of splits: epochs, optimizer steps, fractions of the run, or the decision of a trigger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl

from fpe_lightning.arguments import check_integers, check_number, check_strings
from fpe_lightning.callbacks.lightnings import MisconfigurationException


@runtime_checkable
class ExpansionTrigger(Protocol):
    """Decides when to split. The callback asks it at the end of every epoch, on every process.

    The split happens before the next epoch. A trigger with state also defines ``state_dict`` and ``load_state_dict``,
    with plain types, so that runs can resume.
    """

    def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether to split before the next epoch."""
        ...


@runtime_checkable
class StatefulTrigger(Protocol):
    """A trigger whose state is saved with the run."""

    def state_dict(self) -> dict[str, Any]:
        """The state, in plain types."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state."""
        ...


class SaturationTrigger:
    """Split when a monitored metric has stopped improving.

    Args:
        monitor: Name of a logged metric, such as ``"val/accuracy"``.
        mode: ``"max"`` if more is better, ``"min"`` if less is better.
        patience: Epochs without improvement before the split, at least 1.
        min_delta: The smallest change that counts as an improvement, in units of the metric; at least 0.

    Raises:
        MisconfigurationException: If an argument is out of range, or, during training, if the metric is not logged.

    Example:
        >>> trigger = SaturationTrigger("val/accuracy", patience=2)
        >>> [trigger.saturated(value) for value in (0.5, 0.6, 0.6, 0.6)]
        [False, False, False, True]
    """

    def __init__(self, monitor: str, mode: str = "max", patience: int = 3, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise MisconfigurationException(f'`mode` has to be "min" or "max", found {mode!r}.')
        try:
            check_strings("monitor", monitor, "the name of a metric")
            check_integers({"patience": patience})
            check_number("min_delta", min_delta)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.monitor, self.mode, self.patience, self.min_delta = monitor, mode, patience, min_delta
        self.best = -math.inf
        self.waited = 0

    def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Read the newest value of the metric."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            # The module may log after callbacks in the first epoch; a run resumed after validation does not restore it.
            if trainer.current_epoch == 0 or self.best > -math.inf:
                return False
            logged = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise MisconfigurationException(
                f"SaturationTrigger monitors {self.monitor!r}, which is not logged. Logged metrics: {logged}."
            )
        return self.saturated(float(value))

    def saturated(self, value: float) -> bool:
        """Add one value; return True and reset if it is the ``patience``-th in a row without improvement."""
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
        """The best value so far, and the number of epochs since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]


class Schedule:
    """The moments of all splits of one callback; the callback counts the splits that are done.

    Args:
        epoch: One or several epochs, counted from 0; the split comes before their first batch.
        step: One or several numbers of optimizer steps; the split comes after them.
        fraction: One or several fractions of the run, in [0, 1); the split comes after that share of its batches, or of
            ``max_steps`` if that ends the run earlier.
        trigger: Decides by itself; asked at the end of each epoch.
        max_splits: The largest number of splits by a trigger.

    Raises:
        MisconfigurationException: If not exactly one kind of moment is given, or its values are out of range.
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
        if type(max_splits) is not int or max_splits < 1:
            raise MisconfigurationException(f"`max_splits` has to be an integer of at least 1, found {max_splits!r}.")
        if trigger is not None and (isinstance(trigger, type) or not isinstance(trigger, ExpansionTrigger)):
            found = f"the class {trigger.__name__}" if isinstance(trigger, type) else type(trigger).__name__
            raise MisconfigurationException(
                f"`trigger` needs a method `should_expand(trainer, pl_module)`, found {found}."
            )
        if trigger is None and max_splits != 1:
            raise MisconfigurationException(
                f"`max_splits` is for a `trigger`; `{self.kind}` lists all splits by itself."
            )
        self.count = max_splits if trigger is not None else len(self.moments)

    def _moments(self, value: Any) -> list[float]:
        moments = list(value) if isinstance(value, Sequence) else [value]
        # Epochs and steps are integers of at least 0, fractions are in [0, 1); bools are neither.
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
        """Refuse a moment after the run's own limits, before anything is loaded.

        Args:
            trainer: The trainer, with its limits.

        Raises:
            MisconfigurationException: With the moment and the end of the run.
        """
        if trainer.fast_dev_run or self.trigger is not None:  # type: ignore[attr-defined]
            return
        epochs, steps = trainer.max_epochs, trainer.max_steps
        if self.kind == "fraction":
            if epochs in (None, -1) and steps == -1:
                raise MisconfigurationException("`fraction` needs a run with an end: set `max_epochs` or `max_steps`.")
            return
        end = epochs if self.kind == "epoch" else steps
        if end not in (None, -1):
            self._refuse_late(end, f"at max_{self.kind}s={end}")

    def check_steps(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a moment after the last optimizer step, once the number of batches is known.

        Args:
            trainer: The trainer, with its data loaders.
            pl_module: The module.

        Raises:
            MisconfigurationException: With the moment and the end of the run.
        """
        batches = trainer.num_training_batches
        if self.kind == "fraction" and math.isinf(batches) and trainer.max_steps == -1:
            raise MisconfigurationException(
                "`fraction` needs a run with an end: the training data has no length, so set `max_steps`."
            )
        if trainer.fast_dev_run or not pl_module.automatic_optimization or math.isinf(batches) or not batches:  # type: ignore[attr-defined]
            return
        # Limits of another unit than the moment's are converted through the optimizer steps of an epoch.
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        if self.kind == "step" and trainer.max_epochs not in (None, -1):
            self._refuse_late(trainer.max_epochs * steps, f"after {trainer.max_epochs * steps} optimizer steps")
        if self.kind == "epoch" and trainer.max_steps != -1:
            self._refuse_late(math.ceil(trainer.max_steps / steps), f"after {trainer.max_steps} optimizer steps")

    def _refuse_late(self, end: int, where: str) -> None:
        late = [moment for moment in self.moments if moment >= end]
        if late:
            raise MisconfigurationException(
                f"`{self.kind}={late[0]}` is never reached: the run ends {where}, and counting starts at 0."
            )

    def asks(self, trainer: pl.Trainer, pl_module: pl.LightningModule, done: int) -> bool:
        """Whether the trigger wants a split at the end of this epoch; the answer is the same on every process."""
        if self.trigger is None or done >= self.count:
            return False
        return trainer.strategy.reduce_boolean_decision(self.trigger.should_expand(trainer, pl_module), all=False)

    def due(self, trainer: pl.Trainer, batch_idx: int, done: int) -> int:
        """The number of remaining splits that are due before this batch, the same on every process."""
        return sum(self._reached(moment, trainer, batch_idx) for moment in self.moments[done:])

    def passed(self, trainer: pl.Trainer, batch_idx: int) -> int:
        """The number of moments that were over when the last batch was trained on."""
        return sum(self._reached(moment, trainer, batch_idx, before=1) for moment in self.moments)

    def _reached(self, moment: float, trainer: pl.Trainer, batch_idx: int, before: int = 0) -> bool:
        if self.kind == "epoch":
            return trainer.current_epoch - (before if batch_idx == 0 else 0) >= moment
        if self.kind == "step":
            return trainer.global_step - before >= moment
        # Count batches, not steps: manual optimization may take several steps per batch.
        batches = trainer.num_training_batches
        if trainer.max_steps != -1 and trainer.global_step - before >= math.ceil(moment * trainer.max_steps):
            return True
        if trainer.max_epochs in (None, -1) or math.isinf(batches):
            return False
        over = trainer.current_epoch * batches + batch_idx - before
        return over >= math.ceil(moment * trainer.max_epochs * batches)
