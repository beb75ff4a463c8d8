"""Optimizer states in a checkpoint file: who they belong to, and how they go back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

State = dict[str, Any]


def optimizers_of(model: nn.Module, configure: Callable[[Any], Any] | None = None) -> list[Optimizer]:
    """The optimizers of a LightningModule in Lightning's order, whatever form ``configure_optimizers`` returns.

    Args:
        model: The module.
        configure: Called with it in place of its own ``configure_optimizers``.

    Raises:
        ValueError: If it has none, or cannot make them without a Trainer.

    Example:
        >>> import torch
        >>> [type(o).__name__ for o in optimizers_of(nn.Linear(2, 1), lambda m: torch.optim.SGD(m.parameters()))]
        ['SGD']
    """
    configure = configure or getattr(type(model), "configure_optimizers", None)
    if configure is None:
        raise ValueError(
            f"The checkpoint holds optimizer states, and {type(model).__name__} has no `configure_optimizers`; pass "
            "`configure_optimizers=lambda module: ...`."
        )
    try:
        made = configure(model)
    except Exception as error:  # whatever a user's method raises
        raise ValueError(
            f"`configure_optimizers` of {type(model).__name__} does not run without a Trainer ({error}); pass "
            "`configure_optimizers=lambda module: ...` that makes the same optimizers, without schedulers."
        ) from error
    return _optimizers(made)


def _optimizers(made: Any) -> list[Optimizer]:
    if isinstance(made, Optimizer):
        return [made]
    if isinstance(made, dict):
        return [made["optimizer"]]
    made = list(made or [])
    if made and all(isinstance(each, (list, tuple)) for each in made):
        made = list(made[0])  # optimizers and schedulers
    return [each["optimizer"] if isinstance(each, dict) else each for each in made]


def load_optimizers(model: nn.Module, optimizers: Sequence[Optimizer], saved: Sequence[State]) -> None:
    """Load the states of a checkpoint into optimizers of its module.

    Raises:
        ValueError: If there are more or fewer optimizers, groups or parameters than in the checkpoint.
    """
    if len(optimizers) != len(saved):
        raise ValueError(f"The checkpoint holds {len(saved)} optimizers, and the module makes {len(optimizers)}.")
    for optimizer, state in zip(optimizers, saved, strict=True):
        held, ids = optimizer.param_groups, state["param_groups"]
        if [len(group["params"]) for group in held] != [len(group["params"]) for group in ids]:
            raise ValueError(
                f"The checkpoint's {type(optimizer).__name__} holds groups of "
                f"{', '.join(str(len(group['params'])) for group in ids)} parameters, and the module's one of "
                f"{', '.join(str(len(group['params'])) for group in held)}."
            )
        groups = [{**group, "params": names} for group, names in zip(ids, _ids(model, optimizer, state), strict=True)]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def widened_states(model: nn.Module, optimizers: Sequence[Optimizer], saved: Sequence[State]) -> list[State]:
    """The states of optimizers under the ids that the checkpoint gave to their parameters."""
    states = []
    for optimizer, old in zip(optimizers, saved, strict=True):
        names = [name for group in _ids(model, optimizer, old) for name in group]
        new = {names[position]: state for position, state in optimizer.state_dict()["state"].items()}
        states.append({**old, "state": {name: new[name] for name in old["state"] if name in new}})
    return states


def _ids(model: nn.Module, optimizer: Optimizer, state: State) -> list[list[Any]]:
    """The checkpoint's name for each parameter of each group, in the optimizer's order.

    An optimizer numbers its parameters one after the other. Code that gathers shards numbers them as the module does,
    or calls them by name, and sorts them within each group.
    """
    ids = [group["params"] for group in state["param_groups"]]
    if [each for group in ids for each in group] == list(range(sum(map(len, ids)))):
        return ids
    names = {parameter: name for name, parameter in model.named_parameters()}
    numbers = {name: number for number, name in enumerate(names.values())}
    found = []
    for group, held in zip(ids, optimizer.param_groups, strict=True):
        own = [names[parameter] for parameter in held["params"]]
        called = [name if isinstance(group[0], str) else numbers[name] for name in own]
        if set(called) != set(group):
            raise ValueError(
                f"The groups of the checkpoint's {type(optimizer).__name__} hold other parameters than the module's."
            )
        found.append(called)
    return found
