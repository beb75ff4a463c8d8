"""Where a schedule stands when a run resumes with other arguments, or a module comes split without any state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from fpe_lightning.callbacks.schedule import Schedule, StatefulTrigger
from fpe_lightning.sparse.record import record_of

State = dict[str, Any]


class Progress:
    """Which splits of a schedule are done; part of a callback's state.

    Args:
        schedule: The schedule.
        arguments: The arguments of the callback, in plain types, which tell whether a saved state is of the same ones.

    Attributes:
        done: The number of splits that are done.
        pending: Whether a trigger asked for a split that is not done yet.
        loaded: The state that this run resumed with, if any.
    """

    def __init__(self, schedule: Schedule, arguments: State) -> None:
        self.schedule, self.arguments = schedule, arguments
        self.loaded: State | None = None
        self.reset()

    def reset(self) -> None:
        """Begin the schedule again."""
        self.done, self.pending = 0, False

    @property
    def more(self) -> bool:
        """Whether there are splits to come."""
        return self.done < self.schedule.count

    def state_dict(self) -> State:
        """The state, in plain types."""
        state: State = {"done": self.done, "pending": self.pending, "arguments": self.arguments}
        if isinstance(self.schedule.trigger, StatefulTrigger):
            state["trigger"] = self.schedule.trigger.state_dict()
        return state

    def load_state_dict(self, state: State) -> None:
        """Take a saved state, which may be of other arguments."""
        self.loaded = state
        self.done, self.pending = state["done"], state["pending"]
        if isinstance(self.schedule.trigger, StatefulTrigger) and "trigger" in state:
            self.schedule.trigger.load_state_dict(state["trigger"])

    def state_among(self, saved: Mapping[str, State], everybody: Sequence[Progress]) -> State | None:
        """The saved state of one of several callbacks: that of the same arguments, or else the one in the same place.

        Args:
            saved: The states of all callbacks of the class, by key.
            everybody: The progress of all callbacks of the run, this one among them.

        Returns:
            The state; None where the run has more callbacks than there are states.
        """
        # Keys of several callbacks differ in a number at their end, so that sorting restores their order.
        states = [saved[key] for key in sorted(saved) if "arguments" in saved[key]]
        known = [state["arguments"] for state in states]
        if self.arguments in known:
            return states[known.index(self.arguments)]
        now = [each.arguments for each in everybody]
        left = [state for state in states if state["arguments"] not in now]
        place = sum(each not in known for each in now[: everybody.index(self)])
        return left[place] if place < len(left) else None

    def start(self, trainer: pl.Trainer, batch_idx: int, split_before: int, others: Sequence[Progress]) -> None:
        """Before the first batch of a fit: find the place in the schedule, and say where it is not as expected.

        Moments that the saved schedule begins with too are over as they were. Of others, those in the past are over as
        often as the weights were split, and those in the future are not.

        Args:
            trainer: The trainer, before a batch.
            batch_idx: The batch.
            split_before: How often the module was split when the run began.
            others: The progress of other callbacks of this class.
        """
        if self.loaded is not None:
            done, old, new = self.loaded["done"], self.loaded["arguments"], self.arguments
            if old == new:
                return
            same = old["kind"] == new["kind"] and old["moments"][:done] == new["moments"][:done]
            if not same and self.schedule.trigger is None:
                self.done = min(done, self.schedule.passed(trainer, batch_idx))
            what = f"The run resumes with other arguments of ExpansionCallback ({changes(old, new)}), after it was "
            what += f"split {_times(done)}"
        elif split_before and not self.done:
            # Splits that other callbacks of this run did are not ours.
            number = max(split_before - sum(each.done for each in others), 0)
            self.done = min(number, self.schedule.passed(trainer, batch_idx))
            what = f"The module was split {_times(split_before)} before this ExpansionCallback saw it"
        else:
            return
        rank_zero_info(f"{what}: {self._outlook()}.")

    def warn_of_missing(self, trainer: pl.Trainer) -> None:
        """Say at the end of a run that it never came to some of its splits."""
        missing = self.schedule.count - self.done
        if missing and self.schedule.trigger is None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"The run ended after epoch {trainer.current_epoch - 1}, step {trainer.global_step}, before {missing} "
                f"of {self.schedule.count} splits of ExpansionCallback were due: `{self.schedule.kind}="
                f"{self.schedule.moments[self.done]}` was not reached."
            )

    def _outlook(self) -> str:
        if not self.more:
            return "no split is left"
        if self.schedule.trigger is not None:
            return f"`trigger` may split {self.schedule.count - self.done} times more"
        return f"the next split is due at `{self.schedule.kind}={self.schedule.moments[self.done]}`"


def plain_arguments(expansion: Any, schedule: Schedule, **others: Any) -> State:
    """The arguments of a callback in plain types, equal in every process.

    Args:
        expansion: How to expand.
        schedule: When to split.
        others: Names, a sequence of names, or None, by argument.

    Example:
        >>> plain_arguments(None, Schedule(epoch=1), sites=("a", "b"))
        {'expansion': 'None', 'kind': 'epoch', 'moments': [1], 'sites': ['a', 'b']}
    """
    # A function's address is another one in the next process.
    described = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(expansion))
    plain = {name: each if each is None or isinstance(each, str) else list(each) for name, each in others.items()}
    return {"expansion": described, "kind": schedule.kind, "moments": schedule.moments, **plain}


def _times(number: int) -> str:
    return {0: "never", 1: "once"}.get(number, f"{number} times")


def times_split(model: nn.Module) -> int:
    """How often the weights of a model were split, by their records.

    Example:
        >>> times_split(nn.Linear(4, 2))
        0
    """
    most = 0
    for module in model.modules():
        record = record_of(module)
        for splits in record.splits.values() if record is not None else ():
            for dim in {split.dim for split in splits}:
                starts = [split.start for split in splits if split.dim == dim]
                # Several sites may share an axis; only the first of them never moves.
                most = max(most, starts.count(min(starts)))
    return most


def changes(old: State, new: State) -> str:
    """The arguments that differ, for a line of the log.

    Example:
        >>> changes({"kind": "epoch", "moments": [1], "sites": None}, {"kind": "epoch", "moments": [5], "sites": None})
        '`epoch=5`, was `epoch=1`'
    """

    def schedule(arguments: State) -> str:
        moments = arguments["moments"]
        return f"`{arguments['kind']}" + (f"={moments[0] if len(moments) == 1 else moments}`" if moments else "`")

    found = []
    if (old["kind"], old["moments"]) != (new["kind"], new["moments"]):
        found.append(f"{schedule(new)}, was {schedule(old)}")
    for name in new:
        if name not in ("kind", "moments") and old.get(name) != new[name]:
            found.append(f"`{name}={new[name]}`, was `{name}={old.get(name)}`")
    return "; ".join(found)
