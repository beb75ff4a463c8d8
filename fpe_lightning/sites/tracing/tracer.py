"""The tracer: a dispatch mode that lets labels flow through the operators of a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fpe_lightning.sites.tracing.call import Call, Tag
from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.linearity import is_linear
from fpe_lightning.sites.tracing.operators import name_of, rule_of
from fpe_lightning.sites.tracing.rules_pointwise import FACTORIES


class AxisTracer(TorchDispatchMode):
    """Carry labels through every operator that runs while the mode is on.

    Args:
        facts: The record that the rules write to.
        state: Parameters and float buffers by qualified name.
        module: Returns the qualified name of the module whose forward is running.
    """

    def __init__(self, facts: Facts, state: dict[str, Tensor], module: Callable[[], str]) -> None:
        super().__init__()
        self.facts = facts
        self.module = module
        # Weak keys: labels neither keep activations alive nor leave attributes on anybody's tensors.
        self.tags: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for name, tensor in state.items():
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dim():
                self.tags[tensor] = Tag(tuple(facts.labels_of(name, tensor)), parameter=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, then let its rule label the outputs."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes = [tensor.shape for tensor in tensors]
        if func is torch.ops.aten.native_batch_norm.default and isinstance(args[0], FakeTensor):
            result = _batch_norm_shapes(*args)
        else:
            result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result
        name = name_of(func)
        tags = [self.tags[tensor] for tensor in tensors if tensor in self.tags]
        if name in FACTORIES or any(tag.labels or tag.filler for tag in tags):
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            arguments = {
                argument.name: args[position]
                if position < len(args)
                else kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)
                for position, argument in enumerate(func._schema.arguments)
            }
            given = (args, kwargs, tensors, shapes, outputs)
            call = Call(name, func, arguments, *given, self.facts, self.tags, self.module())
            with _disable_current_modes():
                _apply(call)
        return result


def _apply(call: Call) -> None:
    """Let the rule of an operator label its outputs, and note what every rule has in common."""
    before = [(tensor, tuple(call.labels(tensor))) for tensor in call.tensors if call.tag(tensor).labels]
    linear = is_linear(call)
    try:
        rule_of(call.function)(call)
    except Exception as error:  # a form of the operator that its rule does not foresee ends a site, not the trace
        for _, labels in before:
            call.freeze(labels, f"unknown form of {call.name} ({type(error).__name__})")
        call.emit(())
    if not linear:
        for _, labels in before:
            call.facts.bend(labels)
    handled = [*before, *((tensor, call.tag(tensor).labels) for tensor in call.outputs)]
    written = {leaf for leaf in tree_leaves((call.positional, call.keywords)) if type(leaf) is int}
    fitting = [(tensor, labels) for tensor, labels in handled if all(la.dim() == tensor.dim() for la in labels)]
    call.facts.use(call.module, fitting, written)


def _batch_norm_shapes(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The result of batch normalisation, without the many operators that fake tensors decompose it into."""
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])
