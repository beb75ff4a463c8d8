"""Layers with masks: what is zero stays zero.

A mask is a bool buffer ``fpe_mask_<name>`` next to the parameter ``<name>``, in the module that owns both: True where
the parameter may be non-zero. Nothing is multiplied in the forward pass. A hook of the parameter masks its gradient,
and masked entries are zero after every optimizer step (see :mod:`fpe_lightning.sparse.guard`). Where a forward pass
runs on another tensor than that parameter (shards, ``functional_call``, reparametrizations), the layer masks the
gradient itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.guard import GuardedModule, guard, is_guarded, mask_name, refresh, zero_masked_

ROWS = 2**16
"""Rows of a parameter that are masked together, so that no second mask of the size of the first is made."""


class _MaskGradient(torch.autograd.Function):
    """Identity whose gradient is zero wherever a mask is False."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        # Not a product: a gradient that overflowed would leave NaN (inf * 0) at a masked place.
        return torch.where(mask, grad, 0), None


# A graph traced by torch.fx keeps the call as it is, so that it trains masked too.
torch.fx.wrap("mask_gradient")


def mask_gradient(weight: Tensor, mask: Tensor) -> Tensor:
    """Return ``weight`` with a gradient that is zero wherever ``mask`` is False.

    Args:
        weight: Tensor of any shape and floating dtype, zero wherever ``mask`` is False. A tensor that was computed from
            others need not be zero there.
        mask: Bool tensor of the same shape.

    Returns:
        ``weight`` itself where no gradient is recorded, or a hook masks it; else a view or a masked copy.

    Example:
        >>> weight = torch.ones(3, requires_grad=True)
        >>> mask_gradient(weight, torch.tensor([True, False, True])).sum().backward()
        >>> weight.grad
        tensor([1., 0., 1.])
    """
    if is_guarded(weight):
        if not torch.compiler.is_compiling():
            refresh(weight)
        return weight
    # Computed from other tensors: no hook is there, and entries need not be zero.
    if not weight.is_leaf:
        return torch.where(mask, weight, 0)
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return weight
    # DDP writes buffers in place before every forward pass; a copy that autograd alone holds keeps an earlier
    # forward pass valid. A bool mask is a quarter of the size of its fp32 weight.
    return _MaskGradient.apply(weight, mask.clone() if _is_overwritten_by_ddp() else mask)


def _is_overwritten_by_ddp() -> bool:
    """True where several processes train together, and DDP may broadcast buffers between two forward passes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class MaskedLinear(GuardedModule, nn.Linear):
    """An ``nn.Linear`` whose ``weight`` has a mask; made by :func:`set_mask`."""

    fpe_plain = nn.Linear
    fpe_mask_weight: Tensor

    @override
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, mask_gradient(self.weight, self.fpe_mask_weight), self.bias)


class _MaskedConv(GuardedModule):
    """A convolution whose ``weight`` has a mask."""

    fpe_mask_weight: Tensor

    @override
    def forward(self, input: Tensor) -> Tensor:
        conv: Any = self
        return conv._conv_forward(input, mask_gradient(conv.weight, self.fpe_mask_weight), conv.bias)


class MaskedConv1d(_MaskedConv, nn.Conv1d):
    """An ``nn.Conv1d`` whose ``weight`` has a mask; made by :func:`set_mask`."""

    fpe_plain = nn.Conv1d


class MaskedConv2d(_MaskedConv, nn.Conv2d):
    """An ``nn.Conv2d`` whose ``weight`` has a mask; made by :func:`set_mask`."""

    fpe_plain = nn.Conv2d


class MaskedConv3d(_MaskedConv, nn.Conv3d):
    """An ``nn.Conv3d`` whose ``weight`` has a mask; made by :func:`set_mask`."""

    fpe_plain = nn.Conv3d


class MaskedModule(GuardedModule):
    """Mixin for a module of any other type: its own forward pass runs on parameters with masked gradients."""

    fpe_base: ClassVar[type[nn.Module]]

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _gradients_masked(self):
            return super().forward(*args, **kwargs)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time and cannot be imported by name; its base can.
        # A base that was made at run time too says how (see :mod:`fpe_lightning.sparse.conv1d`).
        return _new_masked, (getattr(self.fpe_base, "fpe_recipe", self.fpe_base),), self.__dict__


@contextmanager
def _gradients_masked(module: nn.Module) -> Iterator[None]:
    """Let ``module`` see its parameters with masked gradients for the time of one forward pass."""
    parameters: dict[str, Any] = module._parameters
    originals = {name: parameters[name] for name in _masked_names(module)}
    try:
        for name, parameter in originals.items():
            parameters[name] = mask_gradient(parameter, mask_of(module, name))  # type: ignore[arg-type]
        yield
    finally:
        parameters.update(originals)


_EXACT: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MaskedLinear,
    nn.Conv1d: MaskedConv1d,
    nn.Conv2d: MaskedConv2d,
    nn.Conv3d: MaskedConv3d,
}
_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def masked_class(base: type[nn.Module]) -> type[nn.Module]:
    """The masked class of a class of modules.

    Example:
        >>> masked_class(nn.Linear).__name__, masked_class(nn.Bilinear).__name__
        ('MaskedLinear', 'MaskedBilinear')
    """
    if base in _EXACT:
        return _EXACT[base]
    if base not in _MADE:
        _MADE[base] = type(
            f"Masked{base.__name__}",
            (MaskedModule, base),
            {"__module__": base.__module__, "fpe_base": base, "fpe_plain": getattr(base, "fpe_plain", base)},
        )
    return _MADE[base]


def _unmasked_class(masked: type[nn.Module]) -> type[nn.Module]:
    if issubclass(masked, MaskedModule):
        return masked.fpe_base
    return next(plain for plain, exact in _EXACT.items() if issubclass(masked, exact))


def _new_masked(base: Any) -> nn.Module:
    # A pickle names the base, which can be imported; the class is made again.
    if isinstance(base, tuple):
        make, arguments = base
        base = make(*arguments)
    cls = masked_class(base)
    return cls.__new__(cls)


def _is_masked(module: nn.Module) -> bool:
    return isinstance(module, (MaskedModule, *_EXACT.values()))


def _masked_names(module: nn.Module) -> list[str]:
    return [name for name in module._parameters if mask_of(module, name) is not None]


def mask_of(module: nn.Module, name: str = "weight") -> Tensor | None:
    """Return the mask of one of the module's own parameters, or None where it has none.

    Args:
        module: Any module.
        name: Name of the parameter within ``module``.

    Returns:
        Bool tensor of the parameter's shape, True where it may be non-zero.

    Example:
        >>> mask_of(nn.Linear(4, 2)) is None
        True
    """
    return module._buffers.get(mask_name(name))


def set_mask(module: nn.Module, name: str, mask: Tensor | None) -> None:
    """Give one of the module's own parameters a mask, replace the one it has, or (None) take it away.

    The module stays the same object; its class becomes a masked one, so that the mask survives ``deepcopy``, pickling
    and ``state_dict``. Masked entries of the parameter are set to zero.

    Args:
        module: The module that owns the parameter.
        name: Name of the parameter within ``module``.
        mask: Bool tensor of the parameter's shape, True where the parameter may be non-zero.

    Raises:
        ValueError: If the module has no such parameter, or the mask's shape or dtype does not fit it.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> set_mask(layer, "weight", torch.eye(2, 4, dtype=torch.bool))
        >>> type(layer).__name__, int(layer.weight.count_nonzero())
        ('MaskedLinear', 2)
    """
    parameter = module._parameters.get(name)
    if parameter is None:
        raise ValueError(
            f"A mask was asked for parameter `{name}`, but {type(module).__name__} owns no such parameter."
        )
    if mask is None:
        # Marks that speak about the mask go with it.
        for buffer in (mask_name(name), *getattr(module, "fpe_needs_mask", ())):
            module._buffers.pop(buffer, None)
        if _is_masked(module) and not _masked_names(module):
            module.__class__ = _unmasked_class(type(module))
        return
    if mask.dtype != torch.bool or mask.shape != parameter.shape:
        raise ValueError(
            f"The mask of `{name}` has to be a bool tensor of shape {tuple(parameter.shape)}, "
            f"found {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if not _is_masked(module):
        module.__class__ = masked_class(type(module))
    # Mask first, then the weight in stretches, then the hook, which trusts what is there.
    module.register_buffer(mask_name(name), mask.to(parameter.device))
    for part, kept in zip(parameter.detach().split(ROWS), mask.to(parameter.device).split(ROWS), strict=True):
        zero_masked_(part, kept)
    guard(module, name)
