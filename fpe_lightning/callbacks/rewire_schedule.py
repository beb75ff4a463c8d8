"""When masks are rewired: how often, until when, and over which steps gradients are summed."""

from __future__ import annotations

import math

import lightning.pytorch as pl

from fpe_lightning.callbacks.lightnings import MisconfigurationException

MOST_STEPS = 500
"""The most optimizer steps between two updates by default, in epochs that are longer."""
UPDATES = 20
"""The least number of updates of a run by default, in runs of few epochs."""


class RewireSchedule:
    """The moments of updates, in optimizer steps; the callback counts the steps.

    Args:
        every: Optimizer steps between two updates; None for one epoch, or less in long epochs and short runs.
        until: Share of the run after which masks stay, in (0, 1].
        window: Optimizer steps before an update whose gradients are summed, or a share of all between two updates.
        fraction: Share of the weights that moves at the start of the run, in (0, 1).

    Raises:
        MisconfigurationException: If an argument is out of range.

    Example:
        >>> RewireSchedule(window=0.5).window_of(interval=20)
        10
    """

    def __init__(
        self, every: int | None = None, until: float = 0.75, window: int | float = 1.0, fraction: float = 0.3
    ) -> None:
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise MisconfigurationException(
                f"`every` is a number of optimizer steps of at least 1, or None for one epoch; found {every!r}."
            )
        for name, value in (("until", until), ("fraction", fraction)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise MisconfigurationException(f"`{name}` is a share above 0 and at most 1; found {value!r}.")
        whole = isinstance(window, int) and not isinstance(window, bool) and window >= 1
        if not whole and not (isinstance(window, float) and 0 < window <= 1):
            raise MisconfigurationException(
                "`window` is a number of optimizer steps (an integer of at least 1) or a share of those between two "
                f"updates (a float above 0 and at most 1.0); found {window!r}."
            )
        self.every, self.until, self.window, self.fraction = every, float(until), window, fraction

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse a run without an end: the share of weights that moves falls over the run."""
        if trainer.max_epochs in (None, -1) and trainer.max_steps == -1:
            raise MisconfigurationException(
                "Rewire moves fewer weights towards the end of the run, and this run has no end: set `max_epochs` or "
                "`max_steps`."
            )

    def check_steps(self, trainer: pl.Trainer) -> None:
        """Refuse an interval that allows no update, once the number of batches is known."""
        total = total_steps(trainer)
        if self.every is None or math.isinf(total) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.every >= self.until * total:
            raise MisconfigurationException(
                f"`every={self.every}` allows no update: the run has {int(total)} optimizer steps, and masks stay "
                f"after the share `until={self.until}` of them."
            )

    def interval(self, trainer: pl.Trainer) -> int:
        """Optimizer steps between two updates."""
        if self.every is not None:
            return self.every
        total = total_steps(trainer)
        most = min(steps_of_epoch(trainer), MOST_STEPS)
        if math.isfinite(total):
            most = min(most, max(total / UPDATES, 10), max(self.until * total / 2, 1))
        return max(int(most), 1)

    def window_of(self, interval: int) -> int:
        """The last steps of an interval whose gradients are summed."""
        steps = self.window if isinstance(self.window, int) else math.ceil(self.window * interval)
        return min(int(steps), interval)

    def share(self, trainer: pl.Trainer, batch_idx: int) -> float:
        """The share of the weights that moves before a batch: a half cosine over the run; 0 from ``until`` on."""
        done = progress(trainer, batch_idx) / self.until
        return 0.0 if done >= 1 else self.fraction / 2 * (1 + math.cos(math.pi * done))


def steps_of_epoch(trainer: pl.Trainer) -> float:
    """Optimizer steps of an epoch; infinite where the data have no length."""
    batches = trainer.num_training_batches
    return batches if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)


def total_steps(trainer: pl.Trainer) -> float:
    """Optimizer steps of the run; infinite where they are not known."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    by_epochs = epochs * steps_of_epoch(trainer)
    return min(by_epochs, math.inf if trainer.max_steps == -1 else trainer.max_steps)


def progress(trainer: pl.Trainer, batch_idx: int) -> float:
    """The share of the run that is over before a batch: of its epochs or its steps, whichever is more."""
    shares = [0.0]
    if trainer.max_steps != -1:
        shares.append(trainer.global_step / max(trainer.max_steps, 1))
    if trainer.max_epochs not in (None, -1):
        batches = trainer.num_training_batches
        of_epoch = 0.0 if math.isinf(batches) or not batches else batch_idx / batches
        shares.append((trainer.current_epoch + of_epoch) / max(trainer.max_epochs, 1))
    return max(shares)
