"""Change how weights are stored, masked, in blocks or in 2:4 form, with their gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.sparse.grouped.blocks import expand_blocks, pack, unpack
from fpe_lightning.sparse.grouped.layers import (
    CACHED,
    STRUCTURE,
    GroupedModule,
    cannot_group,
    plain_class,
    set_structure,
    structure_of,
)
from fpe_lightning.sparse.masked import mask_of, set_mask
from fpe_lightning.sparse.semi_structured.layers import is_semi_structured, set_semi_structured


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a layer in its own shape, whatever its layout.

    Args:
        module: A module with a ``weight``.

    Returns:
        The module's own tensor, or for a grouped layer a dense tensor computed from it (differentiable).

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> dense_weight(layer) is layer.weight
        True
    """
    weight: Tensor = getattr(module, "weight")  # noqa: B009 - a module's attributes are untyped
    return module.dense_weight() if isinstance(module, GroupedModule) else weight


def dense_mask(module: nn.Module) -> Tensor | None:
    """The mask of a layer's weight in the weight's own shape, whatever its layout; None where nothing is masked.

    Example:
        >>> dense_mask(nn.Linear(4, 2)) is None
        True
    """
    mask = mask_of(module)
    if not isinstance(module, GroupedModule):
        return mask
    if mask is not None:
        return unpack(mask, module.weight_inputs, module.dense_shape)
    flat = expand_blocks(module.weight_inputs, module.dense_shape[0])
    return flat.view(*flat.shape, *[1] * (len(module.dense_shape) - 2)).expand(module.dense_shape)


def group(module: nn.Module, inputs: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
    """Store a layer's weight in blocks.

    Args:
        module: A linear layer or convolution, dense or masked; changed in place.
        inputs: Bool ``(blocks, inputs)``, the structure; every weight that may be non-zero has to lie in it.
        optimizers: Whoever holds the weight; they hold the packed one afterwards, their state of it packed too.

    Raises:
        ValueError: If the layer has no grouped form, the structure misses a weight, or some optimizer state has another
            shape than the weight. Nothing is changed then.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 2)
        >>> set_mask(layer, "weight", torch.tensor([[True, True, False, False], [False, False, True, True]]))
        >>> group(layer, torch.tensor([[True, True, False, False], [False, False, True, True]]))
        >>> layer
        GroupedLinear(in_features=4, out_features=2, bias=True, blocks=2)
        >>> layer.weight.shape
        torch.Size([4, 1])
    """
    if reason := cannot_group(module):
        raise ValueError(f"The weight cannot be stored in blocks: {reason}; use the masked layout.")
    weight, mask = module.get_parameter("weight"), mask_of(module)
    inputs = inputs.to(weight.device)
    inside = None if mask is None else pack(mask, inputs)
    kept = weight.numel() if mask is None or inside is None else int(mask.sum())
    held = pack(weight, inputs).numel() if inside is None else int(inside.sum())
    if kept != held:
        raise ValueError(
            f"The structure holds {held} of the {kept} weights that may be non-zero; give each of them a block."
        )
    new, states = _converted(weight, lambda tensor: pack(tensor, inputs), optimizers)
    set_structure(module, inputs)
    module._parameters["weight"] = new
    if inside is not None and not bool(inside.all()):
        set_mask(module, "weight", inside)
    _hand_over(weight, new, states, optimizers)


def ungroup(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Store a grouped layer's weight as a dense one with a mask; the inverse of :func:`group`.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> set_mask(layer, "weight", torch.eye(2, dtype=torch.bool))
        >>> group(layer, torch.eye(2, dtype=torch.bool))
        >>> ungroup(layer)
        >>> type(layer).__name__, mask_of(layer).sum()
        ('MaskedLinear', tensor(2))
    """
    assert isinstance(module, GroupedModule)
    inputs, shape, mask = module.weight_inputs, module.dense_shape, dense_mask(module)
    weight = module.get_parameter("weight")
    new, states = _converted(weight, lambda tensor: unpack(tensor, inputs, shape), optimizers)
    set_structure(module, None)
    module._parameters["weight"] = new
    if mask is not None and not bool(mask.all()):
        set_mask(module, "weight", mask.contiguous())
    _hand_over(weight, new, states, optimizers)


@contextmanager
def stored_masked(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> Iterator[None]:
    """Store every layer of a model masked for the time of a block of code, whatever its layout.

    Afterwards each layer whose weight is still the one it had in between has its own parameter back, the same object
    with the same optimizer state; a weight that the code replaced stays. If the code raises, the same holds. Of a
    weight that is sharded only the shape is there in between.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> set_mask(layer, "weight", torch.eye(2, dtype=torch.bool))
        >>> group(layer, torch.eye(2, dtype=torch.bool))
        >>> with stored_masked(layer):
        ...     print(layer.weight.shape)
        torch.Size([2, 2])
        >>> layer.weight.shape
        torch.Size([2, 1])
    """
    optimizers = list(optimizers)
    undo: list[Callable[[], None]] = []
    try:
        for module in model.modules():
            if isinstance(module, GroupedModule):
                sharded = is_sharded(module.get_parameter("weight"))
                undo.append(_undo_sharded(module) if sharded else _undo(module, optimizers))
            elif is_semi_structured(module):
                undo.append(_undo_plain(module))
        yield
    finally:
        for step in undo:
            step()


def _undo_plain(module: nn.Module) -> Callable[[], None]:
    """Let a 2:4 layer be an ordinary masked one, and return what makes it 2:4 again."""
    set_semi_structured(module, on=False)
    weight = module.get_parameter("weight")

    def undo() -> None:
        if module._parameters["weight"] is weight:
            set_semi_structured(module)

    return undo


def _undo(module: GroupedModule, optimizers: list[Optimizer]) -> Callable[[], None]:
    """Ungroup a layer, and return what brings it back."""
    original = module.get_parameter("weight")
    inputs, mask = structure_of(module), mask_of(module)
    held = [(optimizer, optimizer.state[original]) for optimizer in optimizers if original in optimizer.state]
    ungroup(module, optimizers)
    between = module.get_parameter("weight")

    def undo() -> None:
        if module._parameters["weight"] is not between:
            return
        set_structure(module, inputs)
        module._parameters["weight"] = original
        set_mask(module, "weight", mask)
        _hand_over(between, original, [], optimizers)
        for optimizer, state in held:
            optimizer.state[original] = state

    return undo


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is in shards on several processes, as FSDP2 and tensor parallelism leave it.

    Example:
        >>> is_sharded(nn.Linear(4, 2).weight)
        False
    """
    return hasattr(tensor, "full_tensor")


def _undo_sharded(module: GroupedModule) -> Callable[[], None]:
    """Let a grouped layer look dense, with shards of zeros that cost no communication, and return what undoes it."""
    from torch.distributed.tensor import zeros

    layer: Any = module
    original, kind, buffers = layer.weight, type(layer), dict(layer._buffers)
    cached = {name: vars(layer).pop(name) for name in CACHED if name in vars(layer)}
    outline = zeros(
        *module.dense_shape, dtype=original.dtype, device_mesh=original.device_mesh, placements=original.placements
    )
    for name in (STRUCTURE, "weight_mask"):
        layer._buffers.pop(name, None)
    layer.__class__ = plain_class(module)
    layer._parameters["weight"] = nn.Parameter(outline, requires_grad=original.requires_grad)

    def undo() -> None:
        layer.__class__ = kind
        layer._parameters["weight"] = original
        layer._buffers.clear()  # all of them, so that their order stays
        layer._buffers.update(buffers)
        vars(layer).update(cached)

    return undo


States = list[tuple[Optimizer, dict[str, Any]]]


def _converted(
    old: nn.Parameter, convert: Callable[[Tensor], Tensor], optimizers: Iterable[Optimizer]
) -> tuple[nn.Parameter, States]:
    """A converted copy of a parameter, its gradient, and the state that optimizers hold of it."""
    states: States = []
    for optimizer in optimizers:
        if old in optimizer.state:
            states.append((optimizer, {k: _state(old, k, v, convert) for k, v in optimizer.state[old].items()}))
    new = type(old)(convert(old.detach()), requires_grad=old.requires_grad)
    new.__dict__.update(old.__dict__)
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


def _hand_over(old: nn.Parameter, new: nn.Parameter, states: States, optimizers: Iterable[Optimizer]) -> None:
    """Let optimizers hold the new parameter in the place of the old one."""
    for optimizer in optimizers:
        for param_group in optimizer.param_groups:
            param_group["params"] = [new if held is old else held for held in param_group["params"]]
        optimizer.state.pop(old, None)
    for optimizer, state in states:
        optimizer.state[new] = state
