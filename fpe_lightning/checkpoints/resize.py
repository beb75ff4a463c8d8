"""Give a parameter another shape and keep the object, so that optimizers and averages that hold it follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.sites.tracing.sandbox import unless_it_raises
from fpe_lightning.sparse.exchange import parameter_like


def resized(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    """A parameter with a value of another shape: the same object wherever that is possible.

    A script often builds its optimizer before it loads weights. A new object would leave that optimizer with the old
    one, and the run would train nothing.

    Args:
        parameter: The parameter; its gradient is dropped.
        value: The new value, of the same dtype and on the same device.

    Returns:
        The same object, or a new one where it is sharded, was made in inference mode, or is held by a graph or by
        ``DistributedDataParallel``.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> resized(layer.weight, torch.zeros(6, 4)) is layer.weight, layer.weight.shape
        (True, torch.Size([6, 4]))
    """
    if type(parameter) is not nn.Parameter or type(value) is not Tensor or parameter.is_inference():
        return parameter_like(parameter, value)
    old, gradient = parameter.data, parameter.grad
    parameter.grad = None
    parameter.data = value
    if _held_by_graph(parameter):
        parameter.data, parameter.grad = old, gradient
        return parameter_like(parameter, value)
    return parameter


def _held_by_graph(parameter: nn.Parameter) -> bool:
    """Whether autograd still expects gradients of the shape that a parameter had before."""
    if not parameter.requires_grad:
        return False
    with torch.enable_grad():
        node: Any = parameter.view_as(parameter).grad_fn
    (expected,) = node.next_functions[0][0]._input_metadata
    return tuple(expected.shape) != tuple(parameter.shape)


def trainable_mode(model: nn.Module) -> AbstractContextManager[Any]:
    """Outside of inference mode, as tensors that are made in it cannot train later; unless the model's own are so."""
    inside = any(parameter.is_inference() for parameter in model.parameters())
    return nullcontext() if inside else torch.inference_mode(False)


@contextmanager
def all_or_nothing(modules: Iterable[nn.Module], incoming: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Let the code inside rebuild and load modules; if it raises, everything is as before, shapes and values included.

    Args:
        modules: The modules, with everything inside of them.
        incoming: The weights that are about to be loaded into the only module; see
            :func:`~fpe_lightning.sites.tracing.sandbox.unless_it_raises`.
    """
    several = list(modules)
    root = several[0] if len(several) == 1 else nn.ModuleList(several)
    # No copies: a parameter of another shape gets another storage, and the old one stays as it is.
    held = [(each, each.data, each.grad) for each in root.parameters()]
    with unless_it_raises(root, incoming or {}):
        try:
            yield
        except BaseException:
            for parameter, data, gradient in held:
                if parameter.shape != data.shape:
                    parameter.grad = None
                    parameter.data = data
                parameter.grad = gradient
            raise
