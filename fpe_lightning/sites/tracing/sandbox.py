"""Run a model's forward and leave the model as it was: borrowed state, own hooks, own random numbers."""

from __future__ import annotations

import contextlib
import logging
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fpe_lightning.sites.tracing.shapes import Shapes

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
LOGS = ("log", "log_dict")
"""Methods of a LightningModule by which a forward reports values; those of a trial are nobody's."""


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Every distinct module by its first qualified name; the root is ``""``."""
    return dict(model.named_modules())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Every distinct parameter and buffer by its first qualified name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def owners_of(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    """For each name in ``state_of``: the (module name, attribute) pairs that hold the tensor."""
    names = {id(tensor): name for name, tensor in state_of(model).items()}
    owners: dict[str, list[tuple[str, str]]] = {name: [] for name in names.values()}
    for module_name, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                owners[names[id(tensor)]].append((module_name, attribute))
    return owners


def holders_of(model: nn.Module) -> dict[int, list[str]]:
    """For the id of each parameter and buffer: the names under which modules hold it."""
    held: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                held.setdefault(id(tensor), []).append(f"{module_name}.{attribute}".strip("."))
    return held


class ModuleStack:
    """Knows which module's forward is running, and the shape of each module's first input.

    Attributes:
        input_shapes: Shape of the first argument of each module's first call, by qualified name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.input_shapes: dict[str, tuple[int, ...]] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []

    def __call__(self) -> str:
        """The qualified name of the module whose forward is running."""
        return self._stack[-1] if self._stack else ""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow calls of modules while the context is open."""
        self._stack.clear()
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(lambda *_: self._leave(), always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        name = self._names.get(id(module), self())
        self._stack.append(name)
        if args and isinstance(args[0], Tensor):
            self.input_shapes.setdefault(name, tuple(args[0].shape))

    def _leave(self) -> None:
        if self._stack:
            self._stack.pop()


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Let the code inside change a model's attributes, and put everything back afterwards.

    Forward hooks are off inside: a hook that collects activations must not see those of a trial. Random number
    generators, training flags and the fast path of attention are restored, also after an exception.

    Args:
        model: The model to borrow. Tensors are not copied: replace them inside, do not overwrite them.
    """
    # Attributes are saved by reference; containers by value, as a forward may append to them.
    saved = [(module, dict(vars(module))) for module in model.modules()]
    contents = [(value, value.copy()) for _, before in saved for value in before.values() if type(value) in CONTAINERS]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = {tensor.device for tensor in state_of(model).values() if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(device.index or 0 for device in devices)), torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)
            for module in model.modules():
                for name in HOOKS:
                    vars(module)[name] = OrderedDict()
                for name in LOGS:
                    if hasattr(type(module), name):
                        vars(module)[name] = _ignore
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for module, before in saved:
            vars(module).clear()
            vars(module).update(before)
        for value, content in contents:
            _refill(value, content)


@contextlib.contextmanager
def unless_it_raises(model: nn.Module, incoming: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the code inside change a model, and put everything back only if it raises, tensors' values included.

    Args:
        model: The model.
        incoming: The tensors about to be loaded. Model tensors of another shape are replaced, not overwritten, so that
            only the others are copied in the meantime.
    """
    modules = [(module, type(module), dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy()) for *_, before in modules for value in before.values() if type(value) in CONTAINERS
    ]
    values = [
        (tensor, tensor.detach().clone())
        for name, tensor in state_of(model).items()
        if name not in incoming or incoming[name].shape == tensor.shape
    ]
    try:
        yield
    except BaseException:
        for module, kind, before in modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(before)
        for value, content in contents:
            _refill(value, content)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise


CONTAINERS = (dict, OrderedDict, list, set)


def _refill(value: Any, content: Any) -> None:
    if isinstance(value, list):
        value[:] = content
    else:
        value.clear()
        value.update(content)


def _ignore(*_: Any, **__: Any) -> None:
    """Stands in for a method that reports values."""


class Tensors:
    """Makes the stand-ins for a model's tensors: fake ones (shapes without data) or, as fall-back, copies.

    Args:
        fake: Whether they are fake.
        like: Makes stand-ins for the same tensors at other widths; fake ones of tensors that are not widened are shared
            with it, as they hold nothing that a forward could change.
    """

    def __init__(self, fake: bool, like: Tensors | None = None) -> None:
        self._like = like if fake else None
        self.mode: FakeTensorMode | None = None
        self.shapes: Shapes | None = None
        if self._like is not None:
            self.mode, self.shapes = self._like.mode, self._like.shapes
        elif fake:
            self.mode, self.shapes = FakeTensorMode(allow_non_fake_inputs=True), Shapes()
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The context in which the stand-ins can be computed with."""
        # Compiled parts run as they were written; asking for that imports the compiler, so only where it is in use.
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
        # A trial may fail; torch would log that as an error of its own.
        logger = logging.getLogger("torch._subclasses.fake_tensor")
        disabled, logger.disabled = logger.disabled, True
        try:
            with self.mode or contextlib.nullcontext(), eager:
                yield
        finally:
            logger.disabled = disabled

    def of(self, tensor: Tensor, sizes: Mapping[int, Tensor] | None = None) -> Tensor:
        """A stand-in for a tensor, the same one each time.

        Args:
            tensor: The tensor to stand in for.
            sizes: For each axis that is widened the ``(new length,)`` entries of the old axis that it repeats.
        """
        if id(tensor) not in self._made:
            known = None if self._like is None or sizes else self._like._made.get(id(tensor))
            if known is None or known[1].shape != tensor.shape:  # a forward may give it another shape
                known = (tensor, self._make(tensor, sizes or {}))
            self._made[id(tensor)] = known
        return self._made[id(tensor)][1]

    def _make(self, tensor: Tensor, sizes: Mapping[int, Tensor]) -> Tensor:
        data = tensor.detach()
        sharded: Any = data if hasattr(data, "full_tensor") else None  # the module's forward sees the whole tensor
        if self.mode is not None:
            shape = [len(sizes[axis]) if axis in sizes else size for axis, size in enumerate(data.shape)]
            plain = type(data) is Tensor and data.layout == torch.strided and data.is_contiguous()
            if sizes or plain or sharded is not None:
                meta = torch.empty(shape, dtype=data.dtype, device="meta")
                data = FakeTensor(self.mode, meta, data.device)
            else:
                data = self.mode.from_tensor(data)
            if isinstance(tensor, nn.Parameter):
                data._is_param = True  # as nn.Parameter does, without copying it once more
            return data
        data = data.clone() if sharded is None else sharded.full_tensor()
        for axis, index in sizes.items():
            data = data.index_select(axis, index.to(data.device))
        return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def stand_in(model: nn.Module, tensors: Tensors, sizes: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor]:
    """Put stand-ins in place of a borrowed model's parameters, buffers and plain tensor attributes.

    Args:
        model: A model inside ``borrowed``.
        tensors: Makes the stand-ins.
        sizes: For each parameter the widened axes, as ``Tensors.of`` takes them.

    Returns:
        The stand-ins of parameters and buffers by qualified name.
    """
    state = {name: tensors.of(tensor, sizes.get(name)) for name, tensor in state_of(model).items()}
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for holder in holders:
            for name, value in list(holder.items()):
                if isinstance(value, Tensor):
                    holder[name] = tensors.of(value)
    return state
