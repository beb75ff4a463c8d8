"""Rebuild (or shrink) a model's structure from an incoming ``state_dict``, before its weights load.

A narrow model takes a checkpoint made after a split, and a wide one takes a checkpoint made before it. What was never
split is left to ``load_state_dict`` and its own checks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.arguments import check_module, check_state_dict
from fpe_lightning.checkpoints.checks import check_tensors, largest_growth
from fpe_lightning.checkpoints.names import StructureError, check_names, is_expanded
from fpe_lightning.checkpoints.rebuild import apply_rebuild, plan_rebuild
from fpe_lightning.checkpoints.resize import all_or_nothing, trainable_mode
from fpe_lightning.expansion.optimizer import hand_over
from fpe_lightning.expansion.optimizer_parts import listed
from fpe_lightning.expansion.parameter_copies import Copies
from fpe_lightning.expansion.wrappers import check_holds, holders_of
from fpe_lightning.sites.tracing.sandbox import state_of
from fpe_lightning.sparse.layout import is_structure
from fpe_lightning.sparse.semi_structured.packed import packed_layers, repack, unpack_for_training, unpacked_state_dict


def restore_structure(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    prefix: str = "",
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> bool:
    """Give a model the widths and masks that a ``state_dict`` was saved with.

    Weights are not loaded; tensors of a new shape are left for ``load_state_dict`` to fill. Parameters stay the same
    objects, so that optimizers that hold them go on; only one that a graph still holds, or that is sharded, becomes a
    new one. If anything does not fit or raises, the model is left untouched.

    Args:
        model: Changed in place; narrow or wide.
        state_dict: As from ``model.state_dict()``, or read from a file by ``safetensors``.
        prefix: The prefix of the model's own names in ``state_dict``.
        optimizer: Optimizers that were built before. They drop the state of parameters with a new shape, for their own
            ``load_state_dict`` to fill, and hold new parameters in the places of old ones.

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
    check_module(model)
    check_state_dict(state_dict)
    optimizers = _Optimizers(model, optimizer)
    state_dict = _read(state_dict)
    _check_scripted(model, state_dict, prefix)
    # Plan for all modules before the first one changes.
    modules = [each for each in model.named_modules() if not isinstance(each[1], torch.jit.ScriptModule)]
    try:
        with trainable_mode(model):
            growth = largest_growth(state_dict, prefix)
            rebuilds = [plan_rebuild(model, name, module, state_dict, prefix, growth) for name, module in modules]
    except ValueError as error:
        raise StructureError(str(error)) from error
    changed = [rebuild for rebuild in rebuilds if rebuild is not None]
    if not changed:
        return False
    _check_parallel(model)
    with trainable_mode(model), all_or_nothing(rebuild.module for rebuild in changed):
        for rebuild in changed:
            apply_rebuild(rebuild)
    optimizers.follow()
    if not optimizers.holders:
        _warn_of_new(model, optimizers.before)
    return True


def load_expanded_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    strict: bool = True,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> Any:
    """Rebuild a model's structure from a ``state_dict`` and load its weights, in one call; no Trainer is needed.

    An optimizer that has taken steps has to be passed, as its state has the old shapes. What ``pack_for_inference``
    packed is packed again. Of tied weights, one name in ``state_dict`` suffices. If loading raises, model and
    optimizers are as they were; for that the old values are held meanwhile.

    Args:
        model: Narrow or wide.
        state_dict: From any stage of a run.
        strict: As in ``load_state_dict``.
        optimizer: See :func:`restore_structure`.

    Returns:
        The result of ``load_state_dict``.

    Raises:
        ValueError: See :func:`restore_structure`.
        RuntimeError: See ``load_state_dict``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> load_expanded_state_dict(model, model.state_dict())
        <All keys matched successfully>
    """
    check_module(model)
    check_state_dict(state_dict)
    check_names(model, state_dict, strict)
    _check_values(model, state_dict)
    return load_into(model, state_dict, lambda state: model.load_state_dict(state, strict=strict), strict, optimizer)


def _check_values(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuse what torch could not copy, some of it half way."""
    own = state_of(model)
    theirs = {key: value for key, value in state_dict.items() if key in own or is_structure(str(key))}
    try:
        check_tensors("", theirs, own, values=True)
    except ValueError as error:
        raise StructureError(str(error)) from error


def load_into(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    load: Callable[[Mapping[str, Tensor]], Any],
    strict: bool = True,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> Any:
    """Rebuild a model's structure from a ``state_dict``, and let a function load its weights.

    Args:
        model: Narrow or wide; as before if anything raises.
        state_dict: From any stage of a run. Of tied weights one name suffices, as in files of safetensors.
        load: Loads the weights from its argument: ``state_dict``, unpacked and with all names of tied weights.
        strict: Whether ``load`` is strict.
        optimizer: See :func:`restore_structure`.

    Returns:
        The result of ``load``.

    Raises:
        ValueError: See :func:`restore_structure`.
    """
    packed = packed_layers(state_dict)
    optimizers = _Optimizers(model, optimizer)
    with all_or_nothing([model], state_dict):
        # Packed weights are no parameters: both sides are unpacked, rebuilt, loaded, and packed again.
        unpack_for_training(model)
        state_dict = unpacked_state_dict(state_dict)
        restore_structure(model, state_dict)
        if strict:  # else the caller expects to be told that they are missing, as safetensors does
            _add_tied(model, state_dict)
        result = load(state_dict)
        repack(model, packed)
    optimizers.follow()
    return result


class _Optimizers:
    """Optimizers that go on after their model took another structure."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | Iterable[Optimizer] | None) -> None:
        given = listed(optimizer)
        check_holds(model, given)
        self.model, self.holders, self.before = model, holders_of(given), dict(model.named_parameters())
        self.shapes = {parameter: parameter.shape for parameter in self.before.values()}

    def follow(self) -> None:
        """Drop the state of parameters that have another shape now, and hold new parameters in the places of old."""
        changed = [parameter for parameter, shape in self.shapes.items() if parameter.shape != shape]
        for holder in self.holders:
            if not isinstance(holder, Copies):  # `hand_over` makes the copies of wrappers again
                for parameter in changed:
                    holder.state.pop(parameter, None)
        hand_over(self.holders, self.before, self.model)


def _check_scripted(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Refuse scripted modules that something of another shape was split for: their code is fixed."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            continue
        path = f"{prefix}{name}." if name else prefix
        own = {path + key: tensor for key, tensor in module.state_dict().items()}
        known = [tensor.shape == state_dict[key].shape for key, tensor in own.items() if key in state_dict]
        if is_expanded(key for key in state_dict if key.startswith(path)) and not all(known):
            raise StructureError(_FIXED.format(name or type(module).__name__, "scripted"))


def _check_parallel(model: nn.Module) -> None:
    """Refuse modules that were wrapped by something that knows their shapes."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise StructureError(_FIXED.format(name or type(module).__name__, "wrapped for data parallelism"))


_FIXED = "The checkpoint has other widths than the model, of which `{}` is {} already: load the weights first."


def _may_train(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and not parameter.is_inference()


def _warn_of_new(model: nn.Module, before: Mapping[str, nn.Parameter]) -> None:
    """Say so where a parameter could not stay the same object, and something that trains may hold the old one."""
    now = dict(model.named_parameters())
    new = [name for name, old in before.items() if name in now and now[name] is not old and _may_train(old)]
    if new:
        warnings.warn(
            f"`{new[0]}` is a new parameter, as a graph or DistributedDataParallel holds the old one: build optimizers "
            "and wrappers that were there before the weights were loaded again.",
            stacklevel=3,
        )


def _read(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Read the structure of a file that Fabric loads lazily; weights stay in the file until they are copied."""
    lazy: dict[str, Any] = {
        key: value for key, value in state_dict.items() if is_structure(key) and hasattr(value, "_load_tensor")
    }
    return {**state_dict, **{key: value._load_tensor() for key, value in lazy.items()}} if lazy else state_dict


def _add_tied(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Name every tensor of the model that is tied to one in ``state_dict``; files of safetensors hold each once."""
    # The variables themselves, as tied weights are one object under several names.
    own = model.state_dict(keep_vars=True)
    held = {id(tensor): name for name, tensor in own.items() if name in state_dict and isinstance(tensor, nn.Parameter)}
    for name, tensor in own.items():
        if name not in state_dict and id(tensor) in held:
            state_dict[name] = state_dict[held[id(tensor)]]
