"""Let ``load_state_dict`` of a module rebuild the structure before it loads the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fpe_lightning.checkpoints.restore import restore_structure


def restore_structure_on_load(model: nn.Module) -> RemovableHandle:
    """Let ``model.load_state_dict`` restore the structure of what it loads first, from now on.

    An optimizer that took steps before such a call has state of the old shapes: load its ``state_dict`` next, or load
    by :func:`~fpe_lightning.checkpoints.restore.load_expanded_state_dict`, which takes it.

    Args:
        model: The module whose ``load_state_dict`` is called, or any module above the layers that are split.

    Returns:
        A handle whose ``remove()`` undoes it.

    Example:
        >>> handle = restore_structure_on_load(nn.Linear(4, 2))
        >>> handle.remove()
    """
    return model.register_load_state_dict_pre_hook(_before_load)


def restores_structure_on_load(model: nn.Module) -> bool:
    """Whether :func:`restore_structure_on_load` was called for a module.

    Example:
        >>> restores_structure_on_load(nn.Linear(4, 2))
        False
    """
    return bool(_hooks_of(model))


def forget_hook(model: nn.Module) -> None:
    """Remove the hook of :func:`restore_structure_on_load` from a module, also where it was copied with the module."""
    for key in _hooks_of(model):
        del model._load_state_dict_pre_hooks[key]


def _hooks_of(model: nn.Module) -> list[int]:
    hooks = model._load_state_dict_pre_hooks
    return [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is _before_load]


def _before_load(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    restore_structure(module, state_dict, prefix)
