"""Store weights in another layout, with their gradients and their optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.sparse.exchange import States, exchange_parameters, parameter_like
from fpe_lightning.sparse.guard import GuardedModule
from fpe_lightning.sparse.layout import LAYOUTS, MASKED, PLAN, Layout, Structure, layout_of
from fpe_lightning.sparse.masked import mask_of, set_mask


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a layer in its own shape, for every layout.

    Args:
        module: A module with a ``weight``.

    Returns:
        The module's own tensor, or for a packed layer a dense tensor computed from it (differentiable).

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> dense_weight(layer) is layer.weight
        True
    """
    layout, weight = layout_of(module), getattr(module, "weight")  # noqa: B009 - a module's attributes are untyped
    if not layout.packs:
        return weight
    return _dense(module, layout, weight)


def _dense(module: nn.Module, layout: Layout, stored: Tensor) -> Tensor:
    """A dense tensor of the weight's shape from one of the stored weight's."""
    shape = layout.turn(module, torch.empty(layout.dense_shape(module), device="meta")).shape
    return layout.turn(module, layout.unpack(stored, layout.structure(module), shape))


def dense_mask(module: nn.Module) -> Tensor | None:
    """The mask of a layer's weight in the weight's own shape, for every layout; None where nothing is masked.

    Example:
        >>> dense_mask(nn.Linear(4, 2)) is None
        True
    """
    layout = layout_of(module)
    mask = layout.mask(module)
    if not layout.packs:
        return mask
    if mask is None:
        weight, structure = module.get_parameter("weight"), layout.structure(module)
        mask = torch.ones(weight.shape, dtype=torch.bool, device=next(iter(structure.values())).device)
    return _dense(module, layout, mask)


def store(
    module: nn.Module,
    layout: str = "masked",
    structure: Structure | None = None,
    optimizers: Iterable[Optimizer] = (),
) -> None:
    """Store a layer's weight in a layout, from every other one.

    Args:
        module: Changed in place; the object stays.
        layout: Name of the layout.
        structure: The structure in that layout; None lets the layout fit one to the mask.
        optimizers: Optimizers that hold the weight; they hold the stored one afterwards, with its state.

    Raises:
        ValueError: If the layout cannot hold the module or its mask, or some optimizer state has another shape than the
            weight.

    Example:
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(4, 2)
        >>> set_mask(layer, "weight", torch.tensor([[True, True, False, False], [False, False, True, True]]))
        >>> store(layer, "grouped", {"fpe_blocks": layer.fpe_mask_weight})
        >>> layer.weight.shape
        torch.Size([4, 1])
        >>> store(layer, "masked")
        >>> layer.weight.shape
        torch.Size([2, 4])
    """
    target, optimizers = LAYOUTS.get(layout), list(optimizers)
    if target is not MASKED and structure is None:
        mask = dense_mask(module)
        found = target.cannot_hold(module) or ("it is dense" if mask is None else target.fit(module, mask))
        if isinstance(found, str):
            raise ValueError(f"The weight cannot be stored {target.phrase}: {found}; use the masked layout.")
        structure = found
    current = layout_of(module)
    if current.packs:
        _unpack(module, current, optimizers)
    elif current is not MASKED:
        current.take_off(module)
    if target is MASKED or structure is None:
        return
    if reason := target.cannot_hold(module):
        raise ValueError(f"The weight cannot be stored {target.phrase}: {reason}; use the masked layout.")
    device = module.get_parameter("weight").device
    structure = {name: tensor.to(device, copy=True) for name, tensor in structure.items()}
    if target.packs:
        _pack(module, target, structure, optimizers)
    else:
        target.put_on(module, structure)


def _pack(module: nn.Module, layout: Layout, structure: Structure, optimizers: list[Optimizer]) -> None:
    weight, mask = module.get_parameter("weight"), mask_of(module)
    # Every weight that may be non-zero needs a place. A masked weight with a place needs a mask of the stored shape.
    inside = None if mask is None else layout.pack(layout.turn(module, mask), structure)
    kept = weight.numel() if mask is None else int(mask.sum())
    shape = layout.turn(module, weight).shape
    held = layout.stored_shape(structure, shape).numel() if inside is None else int(inside.sum())
    if kept != held:
        raise ValueError(
            f"The structure holds {held} of the {kept} weights that may be non-zero; give each of them a place."
        )
    # All that may raise comes first: the values are computed next to the layer, then put in place.
    new, states = _converted(weight, lambda tensor: layout.pack(layout.turn(module, tensor), structure), optimizers)
    layout.put_on(module, structure)
    module._parameters["weight"] = new
    # A mask that says True everywhere costs memory and time, and says nothing.
    if inside is not None and not bool(inside.all()) and layout.mask(module) is None:
        set_mask(module, "weight", inside)
    if isinstance(module, GuardedModule):
        module.guard_parameters()
    exchange_parameters(optimizers, {weight: new}, states)


def _unpack(module: nn.Module, layout: Layout, optimizers: list[Optimizer]) -> None:
    # Asked before the layout is taken off, which forgets them.
    mask, weight = dense_mask(module), module.get_parameter("weight")
    new, states = _converted(weight, lambda tensor: _dense(module, layout, tensor), optimizers)
    layout.take_off(module)
    module._parameters["weight"] = new
    if mask is not None and not bool(mask.all()):
        set_mask(module, "weight", mask.contiguous())
    exchange_parameters(optimizers, {weight: new}, states)


@contextmanager
def stored_masked(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> Iterator[None]:
    """Store every layer of a model masked for the time of a block of code.

    Afterwards each layer whose weight is still the one it had in between has its own parameter back, the same object
    with the same optimizer state; a weight that the code replaced stays. If the code raises, the same holds. Of a
    weight that is sharded only the shape is there in between.

    Example:
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(2, 2)
        >>> set_mask(layer, "weight", torch.eye(2, dtype=torch.bool))
        >>> store(layer, "grouped", {"fpe_blocks": torch.eye(2, dtype=torch.bool)})
        >>> with stored_masked(layer):
        ...     print(layer.weight.shape)
        torch.Size([2, 2])
        >>> layer.weight.shape
        torch.Size([2, 1])
    """
    optimizers = list(optimizers)
    undo: list[Callable[[], None]] = []
    try:
        # Each step says how to undo itself, so that a step that raises undoes those before it.
        for module in model.modules():
            layout = layout_of(module)
            if layout is MASKED:
                continue
            if not layout.packs:
                undo.append(_taken_off(module, layout))
            elif is_sharded(module.get_parameter("weight")):
                undo.append(_outlined(module, layout))
            else:
                undo.append(_unpacked(module, layout, optimizers))
        yield
    finally:
        for step in undo:
            step()


def _taken_off(module: nn.Module, layout: Layout) -> Callable[[], None]:
    """Let a layer with a dense weight be an ordinary masked one, and return a function that undoes it."""
    weight, structure = module.get_parameter("weight"), layout.structure(module)
    layout.take_off(module)

    def undo() -> None:
        if module._parameters["weight"] is weight:
            layout.put_on(module, structure)

    return undo


def _unpacked(module: nn.Module, layout: Layout, optimizers: list[Optimizer]) -> Callable[[], None]:
    """Unpack a layer, and return a function that undoes it."""
    original = module.get_parameter("weight")
    structure, mask = layout.structure(module), mask_of(module)
    # The state of the packed weight is kept, not converted back: what nothing changed is equal to the bit.
    held = [(optimizer, optimizer.state[original]) for optimizer in optimizers if original in optimizer.state]
    _unpack(module, layout, optimizers)
    between = module.get_parameter("weight")

    def undo() -> None:
        # A weight that the code inside replaced is in its own layout already.
        if module._parameters["weight"] is not between:
            return
        layout.put_on(module, structure)
        module._parameters["weight"] = original
        if mask is not None:
            set_mask(module, "weight", mask)
        states = [(optimizer, between, state) for optimizer, state in held]
        exchange_parameters(optimizers, {between: original}, states)

    return undo


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is in shards on several processes, as FSDP2 and tensor parallelism leave it.

    Example:
        >>> is_sharded(nn.Linear(4, 2).weight)
        False
    """
    return hasattr(tensor, "full_tensor")


def _outlined(module: nn.Module, layout: Layout) -> Callable[[], None]:
    """Let a packed layer look dense, with shards of zeros that cost no communication; the result undoes it."""
    from torch.distributed.tensor import zeros

    layer: Any = module
    original, kind, buffers = layer.weight, type(layer), dict(layer._buffers)
    plan = vars(layer).pop(PLAN, None)
    outline = zeros(
        *layout.dense_shape(module),
        dtype=original.dtype,
        device_mesh=original.device_mesh,
        placements=original.placements,
    )
    layout.take_off(module)
    layer._parameters["weight"] = nn.Parameter(outline, requires_grad=original.requires_grad)

    def undo() -> None:
        layer.__class__ = kind
        layer._parameters["weight"] = original
        layer._buffers.clear()  # all of them, so that their order stays
        layer._buffers.update(buffers)
        if plan is not None:
            vars(layer)[PLAN] = plan

    return undo


def _converted(
    old: nn.Parameter, convert: Callable[[Tensor], Tensor], optimizers: Iterable[Optimizer]
) -> tuple[nn.Parameter, States]:
    """A converted copy of a parameter, its gradient, and the state that optimizers hold of it."""
    states: States = []
    for optimizer in optimizers:
        if old in optimizer.state:
            states.append((optimizer, old, {k: _state(old, k, v, convert) for k, v in optimizer.state[old].items()}))
    new = parameter_like(old, convert(old.detach()))
    if old.grad is not None:
        new.grad = convert(old.grad)
    return new, states


def _state(old: nn.Parameter, key: str, value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor) and value.shape == old.shape:
        return convert(value)
    if isinstance(value, Tensor) and value.numel() > 1:
        raise ValueError(
            f"Optimizer state `{key}` of shape {tuple(value.shape)} belongs to a weight of shape {tuple(old.shape)} "
            'as a whole, and cannot follow it into another layout; use layout="masked" or optimizer_state="reset".'
        )
    return value
