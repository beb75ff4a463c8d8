"""Where a schedule stands when a run resumes with other arguments, or a module comes split without any state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch import nn

from fpe_lightning.callbacks.schedule import Schedule
from fpe_lightning.sparse.record import record_of

State = dict[str, Any]


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


def state_of(saved: Sequence[State], arguments: State, others: Sequence[State], position: int) -> State | None:
    """The saved state of one of several callbacks: that of the same arguments, or else the one in the same place.

    Args:
        saved: The states of all callbacks of the class, in their order.
        arguments: Those of this callback.
        others: The arguments of all callbacks of the run, this one among them.
        position: The place of this one.

    Returns:
        The state; None where the run has more callbacks than there are states.

    Example:
        >>> state_of([{"arguments": {"epoch": 1}}, {"arguments": {"epoch": 2}}], {"epoch": 2}, [{"epoch": 2}], 0)
        {'arguments': {'epoch': 2}}
    """
    known = [state["arguments"] for state in saved]
    if arguments in known:
        return saved[known.index(arguments)]
    left = [state for state in saved if state["arguments"] not in others]
    place = sum(each not in known for each in others[:position])
    return left[place] if place < len(left) else None


def done_with(state: State, arguments: State, schedule: Schedule, trainer: pl.Trainer, batch_idx: int) -> int:
    """How many moments of a schedule are over for a run that was saved with other arguments.

    Moments that both schedules begin with are over as they were. Of others, those in the past are over as often as the
    weights were split, and those in the future are not.

    Args:
        state: The saved state.
        arguments: The arguments of now.
        schedule: The schedule of now.
        trainer: The trainer, before a batch.
        batch_idx: The batch.
    """
    done, old = state["done"], state["arguments"]
    same = old["kind"] == arguments["kind"] and old["moments"][:done] == arguments["moments"][:done]
    if same or schedule.trigger is not None:
        return done
    return min(done, schedule.passed(trainer, batch_idx))


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


def outlook(schedule: Schedule, done: int) -> str:
    """The splits still to come, for a line of the log.

    Example:
        >>> outlook(Schedule(epoch=[1, 5]), 1), outlook(Schedule(epoch=1), 1)
        ('the next split is due at `epoch=5`', 'no split is left')
    """
    if done >= schedule.count:
        return "no split is left"
    if schedule.trigger is not None:
        return f"`trigger` may split {schedule.count - done} times more"
    return f"the next split is due at `{schedule.kind}={schedule.moments[done]}`"


def times(number: int) -> str:
    """A number of times.

    Example:
        >>> times(1), times(3)
        ('once', '3 times')
    """
    return "once" if number == 1 else f"{number} times"
