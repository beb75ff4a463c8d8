"""Masks belong to parameters: masked entries get no gradient from any reader, and are zero after every optimizer step.

Two hooks do this. A gradient hook on the parameter masks the sum of its gradients before anything else sees it: DDP,
clipping, ``torch.autograd.grad``. A hook on all optimizers sets masked entries to zero after each step, as optimizers
may move zeros, and gradients may be edited before a step. Neither needs an optimizer or a Trainer to be told.

Hooks of a parameter get lost where it is copied or pickled; the masked layer that owns it adds them again (see
:class:`GuardedModule`).

An observer sees the dense gradient of a parameter before it is masked (see :func:`observe`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from typing_extensions import override

PREFIX = "fpe_"
"""The first letters of all names that this package adds to modules and parameters; no other package uses them."""

GUARDED = "fpe_guarded"
"""Name of the attribute that a parameter with a gradient hook has."""

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
"""For each dtype the integer of as many bits. Integer products are fast, and make a zero even of NaN and infinity."""

AT_ONCE = 2**20
"""Entries of a tensor that are masked together."""
PART = 2**17
"""Entries that are masked at a time on a CPU: a bool mask is turned into integers first, which is several times as fast
as a product of both."""

Observer = Callable[[Tensor, slice], None]
"""Gets the gradient of some rows of a dense weight, detached; each row once in a backward pass. It may keep no view."""

_observers: weakref.WeakKeyDictionary[nn.Module, dict[str, Observer]] = weakref.WeakKeyDictionary()
"""Not on the modules, as copies and pickles of a module are not observed."""

_installed = False


def mask_name(name: str) -> str:
    """The name of the buffer that holds the mask of a parameter.

    Example:
        >>> mask_name("weight")
        'fpe_mask_weight'
    """
    return f"{PREFIX}mask_{name}"


class GradientMask:
    """A gradient hook of one parameter of one module. It reads the mask when it runs, so masks may move and change.

    Args:
        module: The module that owns the parameter and its mask.
        name: Name of the parameter within ``module``.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = weakref.ref(module), name
        parameter = module._parameters[name]
        assert parameter is not None
        # What something writes from now on is not trusted; a copy of a weight that was merged stays as it is.
        self.version = -1 if parameter.is_inference() else parameter._version

    def mask(self, shape: torch.Size) -> Tensor | None:
        """The mask now; None where the module is gone, or has none of this shape."""
        module = self.module()
        mask = module.fpe_mask_of(self.name) if isinstance(module, GuardedModule) else None
        return mask if mask is not None and mask.shape == shape else None

    def __call__(self, grad: Tensor) -> Tensor | None:
        """Return the gradient with zeros where the mask is False."""
        module = self.module()
        if isinstance(module, GuardedModule) and module.fpe_observed and module.fpe_hook_sees_dense:
            show_gradient(module, self.name, grad)
        mask = self.mask(grad.shape)
        return None if mask is None else masked(grad, mask)

    def clean(self, parameter: Tensor) -> None:
        """Set masked entries of the parameter to zero."""
        mask = self.mask(parameter.shape)
        if mask is not None:
            zero_masked_(parameter.data, mask)


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """A copy of a tensor that is zero wherever ``mask`` is False.

    Args:
        tensor: Any floating dtype.
        mask: Bool, of the same shape and device.

    Example:
        >>> masked(torch.tensor([1.0, float("inf")]), torch.tensor([True, False]))
        tensor([1., 0.])
    """
    # Not a product of floats: a gradient that overflowed would leave NaN (inf * 0) at a masked place. Not in place
    # either, as other nodes of the graph may hold this gradient.
    if not _by_integers(tensor):
        return torch.where(mask, tensor, 0)
    result, bits = torch.empty_like(tensor), BITS[tensor.dtype]
    for new, old, kept in zip(*(_in_parts(each, bits) for each in (result, tensor)), _in_parts(mask), strict=True):
        torch.mul(old, kept.to(bits), out=new)
    return result


def zero_masked_(tensor: Tensor, mask: Tensor) -> None:
    """Set a tensor to zero wherever ``mask`` is False, in place.

    Args:
        tensor: Any floating dtype; it needs no gradient.
        mask: Bool, of the same shape and device.

    Example:
        >>> weight = torch.tensor([1.0, float("nan")])
        >>> zero_masked_(weight, torch.tensor([True, False]))
        >>> weight
        tensor([1., 0.])
    """
    if tensor.dtype not in BITS:
        tensor.masked_fill_(~mask, 0)
    elif _by_integers(tensor):
        for part, kept in zip(_in_parts(tensor, BITS[tensor.dtype]), _in_parts(mask), strict=True):
            part.mul_(kept.to(part.dtype))
    else:
        tensor.view(BITS[tensor.dtype]).mul_(mask)


def _by_integers(tensor: Tensor) -> bool:
    """Whether integer products of parts pay: on a CPU, for a plain tensor that autograd does not follow."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.dtype in BITS
        and tensor.layout == torch.strided
        and tensor.dim() > 0
        and tensor.numel() >= PART // 32
        and not tensor.requires_grad
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # of `is_grads_batched`
        and not torch.compiler.is_compiling()
    )


def _in_parts(tensor: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """A tensor in parts that fit into a cache together with their masks as integers."""
    rows = max(1, PART * tensor.shape[0] // tensor.numel())
    return (tensor if dtype is None else tensor.view(dtype)).split(rows)


def guard(module: nn.Module, name: str) -> None:
    """Add the hooks to a parameter whose module has a mask for it; nothing happens where it has them.

    Parameters in shards (FSDP2) get none: their gradients do not pass through hooks, and the layer masks them instead.

    Args:
        module: The module that owns both.
        name: Name of the parameter within ``module``.
    """
    parameter = module._parameters.get(name)
    if parameter is None or hasattr(parameter, "full_tensor") or not parameter.is_leaf:
        return
    if not any(hook.module() is module and hook.name == name for hook in hooks_of(parameter)):
        # A tensor that needs no gradient takes no hook, and keeps one that it has.
        frozen = not parameter.requires_grad
        parameter.requires_grad_(True)
        parameter.register_hook(GradientMask(module, name))
        parameter.requires_grad_(not frozen)
    setattr(parameter, GUARDED, True)
    _install()


def observe(module: nn.Module, name: str, observer: Observer | None) -> None:
    """Let a function see the dense gradient of a masked parameter, before it is masked; None ends it.

    The gradient is that of one backward pass on this process: not yet reduced over processes, clipped or unscaled.

    Args:
        module: The module that owns the parameter and its mask, in any layout that can move weights.
        name: Name of the parameter within ``module``.
        observer: Gets the gradient of the dense weight and the slice of its rows; there is one observer at a time.

    Example:
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> set_mask(layer, "weight", torch.tensor([[True, False]]))
        >>> observe(layer, "weight", lambda gradient, rows: print(gradient))
        >>> layer(torch.ones(1, 2)).sum().backward()
        tensor([[1., 1.]])
        >>> layer.weight.grad
        tensor([[1., 0.]])
    """
    if isinstance(module, GuardedModule):
        module.fpe_observed = observer is not None
    if observer is not None:
        _observers.setdefault(module, {})[name] = observer
    elif module in _observers:
        _observers[module].pop(name, None)


def show_gradient(module: nn.Module, name: str, gradient: Tensor, rows: slice | None = None) -> None:
    """Show the gradient of some rows of a dense weight (None: of all) to the observer of a parameter, if it has one."""
    observer = _observers.get(module, {}).get(name)
    if observer is not None:
        observer(gradient.detach(), rows or slice(0, len(gradient)))


def is_guarded(tensor: Tensor) -> bool:
    """Whether a tensor has a gradient hook that masks.

    Example:
        >>> is_guarded(nn.Linear(4, 2).weight)
        False
    """
    return bool(getattr(tensor, GUARDED, False))


def hooks_of(parameter: Tensor) -> Iterator[GradientMask]:
    """The gradient hooks of a parameter that mask."""
    for hook in (parameter._backward_hooks or {}).values():
        if isinstance(hook, GradientMask):
            yield hook


def refresh(parameter: Tensor) -> None:
    """Set masked entries to zero if something has written to the parameter since the last call.

    Weights that a user averages in a loop are such a case. Writes through ``.data`` are not seen.
    """
    if parameter.is_inference():
        return
    for hook in hooks_of(parameter):
        if hook.version != parameter._version:
            hook.clean(parameter)
            hook.version = parameter._version


@torch.compiler.disable
def _after_step(optimizer: Optimizer, *_: Any) -> None:
    """Set masked entries to zero that a step has moved."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if is_guarded(parameter):
                for hook in hooks_of(parameter):
                    hook.clean(parameter)
                    hook.version = parameter._version


def _install() -> None:
    global _installed
    if not _installed:
        register_optimizer_step_post_hook(_after_step)
        _installed = True


class GuardedModule(nn.Module):
    """A module with masks, which adds the hooks again wherever its parameters become others."""

    fpe_hook_sees_dense = True
    """Whether gradients that reach the hook are those of the dense weight; else the layer shows them itself."""
    fpe_observed = False
    """Whether some function may see dense gradients now (see :func:`observe`)."""

    def fpe_mask_of(self, name: str) -> Tensor | None:
        """The mask of a parameter as it is stored, bool; None where it has none."""
        return self._buffers.get(mask_name(name))

    def guard_parameters(self) -> None:
        """Add the hooks to every parameter that has a mask."""
        for name in self._parameters:
            if self.fpe_mask_of(name) is not None:
                guard(self, name)

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:  # copies and pickles
        super().__setstate__(state)
        self.guard_parameters()

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # moves, as from the meta device
        result = super()._apply(fn, recurse)
        self.guard_parameters()
        return result

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # with `assign=True`
        super()._load_from_state_dict(*args, **kwargs)
        self.guard_parameters()
