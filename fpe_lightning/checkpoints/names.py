"""What the names in a ``state_dict`` tell: whether something was split, and which prefix is too many or missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from fpe_lightning.sparse.record import RECORD


class StructureError(ValueError, RuntimeError):
    """A ``state_dict`` does not fit a model.

    ``load_state_dict`` raises ``RuntimeError``, and loaders that try one form of names after the other rely on it.
    """


def is_expanded(state_dict: Iterable[Any]) -> bool:
    """Whether something in a ``state_dict`` was split.

    Example:
        >>> is_expanded(nn.Linear(4, 2).state_dict())
        False
    """
    return any(isinstance(key, str) and key.rpartition(".")[2] == RECORD for key in state_dict)


def check_names(model: nn.Module, state_dict: Mapping[str, Any], strict: bool) -> None:
    """Refuse names that cannot be right, where loading is strict, and else warn of them.

    Raises:
        ValueError: Naming the prefix that is too many or missing.
    """
    if reason := misnamed(model, state_dict):
        if strict:
            raise StructureError(reason)
        warnings.warn(reason, stacklevel=3)


def misnamed(model: nn.Module, state_dict: Mapping[str, Any]) -> str | None:
    """Why the names of a ``state_dict`` are not those of a model, in one sentence, where one prefix explains it.

    Example:
        >>> import torch
        >>> misnamed(nn.Linear(4, 2), {"module.fpe_record": torch.zeros(1)})[:63]
        'Names in `state_dict` begin with `module.`, and those of Linear'
    """
    split = [key.rpartition(".")[0] for key in state_dict if isinstance(key, str) and key.rpartition(".")[2] == RECORD]
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if not split or not {*names}.isdisjoint(split):
        return None
    parts, kind = split[0].split("."), type(model).__name__
    for end in range(1, len(parts) + 1):
        prefix = ".".join([*parts[:end], ""])
        if all(f"{path}.".startswith(prefix) and f"{path}."[len(prefix) :].rstrip(".") in names for path in split):
            return (
                f"Names in `state_dict` begin with `{prefix}`, and those of {kind} do not: strip it with "
                "`torch.nn.modules.utils.consume_prefix_in_state_dict_if_present` before `load_state_dict`."
            )
    for name in names:
        prefix = f"{name}."
        if name and all((prefix + path).rstrip(".") in names for path in split):
            return (
                f"Names of {kind} begin with `{prefix}`, and those in `state_dict` do not: load into the module "
                f"inside, `{name}`."
            )
    return None
