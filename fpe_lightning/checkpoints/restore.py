"""Rebuild (or shrink) a model's structure from an incoming ``state_dict``, before its weights load.

A narrow model takes a checkpoint made after a split, and a wide one takes a checkpoint made before it. What was never
split is left to ``load_state_dict`` and its own checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fpe_lightning.checkpoints.rebuild import apply_rebuild, plan_rebuild
from fpe_lightning.expansion.optimizer import as_optimizers, hand_over
from fpe_lightning.sites.tracing.sandbox import unless_it_raises
from fpe_lightning.sparse.semi_structured.packed import packed_layers, repack, unpack_for_training, unpacked_state_dict


def restore_structure(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    prefix: str = "",
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> bool:
    """Give a model the widths and masks that a ``state_dict`` was saved with.

    Weights are not loaded; tensors of a new shape are new parameters, left for ``load_state_dict`` to fill. If anything
    does not fit, the model is left untouched.

    Args:
        model: Changed in place; narrow or wide.
        state_dict: As from ``model.state_dict()``, or read from a file by ``safetensors``.
        prefix: What stands before the model's own names in ``state_dict``.
        optimizer: Optimizers that were built before; they hold the new parameters in the places of the old ones, for
            their own ``load_state_dict`` to fill their state.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: If the checkpoint comes from a model of other widths before its first split, is not whole, or
            holds a broken record.

    Example:
        >>> import torch
        >>> from fpe_lightning.expansion.expand import expand
        >>> wide, narrow = (nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
        >>> _ = expand(wide, alpha=2, example_inputs=torch.randn(1, 64))
        >>> restore_structure(narrow, wide.state_dict())
        True
        >>> narrow.load_state_dict(wide.state_dict())
        <All keys matched successfully>
    """
    rebuilds = [plan_rebuild(model, name, module, state_dict, prefix) for name, module in model.named_modules()]
    changed = [rebuild for rebuild in rebuilds if rebuild is not None]
    optimizers, before = as_optimizers(optimizer), dict(model.named_parameters())
    for rebuild in changed:
        apply_rebuild(rebuild)
    hand_over(optimizers, before, model)
    return bool(changed)


def load_expanded_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    strict: bool = True,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> Any:
    """Rebuild a model's structure from a ``state_dict`` and load its weights, in one call; no Trainer is needed.

    Tensors of a new shape are new parameters: build optimizers afterwards, or pass those that are there. What
    ``pack_for_inference`` packed is packed again. If loading raises, model and optimizers are as they were; for that
    the old values are held meanwhile.

    Args:
        model: Narrow or wide.
        state_dict: From any stage of a run.
        strict: As in ``load_state_dict``.
        optimizer: See :func:`restore_structure`.

    Returns:
        What ``load_state_dict`` returns.

    Raises:
        ValueError: See :func:`restore_structure`.
        RuntimeError: See ``load_state_dict``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> load_expanded_state_dict(model, model.state_dict())
        <All keys matched successfully>
    """
    packed = packed_layers(state_dict)
    optimizers, before = as_optimizers(optimizer), dict(model.named_parameters())
    with unless_it_raises(model, state_dict):
        unpack_for_training(model)
        state_dict = unpacked_state_dict(state_dict)
        restore_structure(model, state_dict)
        result = model.load_state_dict(state_dict, strict=strict)
        repack(model, packed)
    hand_over(optimizers, before, model)
    return result


def restore_structure_on_load(model: nn.Module) -> RemovableHandle:
    """Let ``model.load_state_dict`` call :func:`restore_structure` first, from now on.

    An optimizer that was built before such a call holds parameters that the model may no longer have: build it
    afterwards, or load by :func:`load_expanded_state_dict`, which takes it.

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
    return any(getattr(hook, "hook", hook) is _before_load for hook in model._load_state_dict_pre_hooks.values())


def _before_load(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    restore_structure(module, state_dict, prefix)
