"""The tracer: a dispatch mode that lets labels flow through the operators of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fpe_lightning.sites.tracing.facts import Facts, Role
from fpe_lightning.sites.tracing.labels import aligned, distinct, varying


class Tag(NamedTuple):
    """What the tracer knows of a tensor.

    Attributes:
        labels: One label for each independent axis.
        parameter: Whether it is a parameter or a view of one, so that its entries may be copied or divided.
        filler: Whether all entries are interchangeable (constants, noise), so that it may have any width.
    """

    labels: tuple[Tensor, ...] = ()
    parameter: bool = False
    filler: bool = False


@dataclass
class Call:
    """One operator call, as the rules see it.

    Attributes:
        name: Operator name without namespace, overload or the underscore of in-place forms.
        function: The operator.
        arguments: Arguments by the names of the operator's schema.
        positional: Arguments as they were passed.
        tensors: All tensors among the arguments.
        shapes: Shapes of ``tensors`` before the call.
        outputs: All tensors that the call returned.
        tracer: Who keeps the tags.
    """

    name: str
    function: Any
    arguments: dict[str, Any]
    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    tensors: list[Tensor]
    shapes: list[torch.Size]
    outputs: list[Tensor]
    tracer: AxisTracer

    @property
    def facts(self) -> Facts:
        """Where rules write what they learn."""
        return self.tracer.facts

    @property
    def inplace(self) -> bool:
        """Whether the operator writes into its first argument."""
        return bool(self.function._schema.is_mutable)

    @property
    def input(self) -> Tensor:
        """The first tensor argument."""
        return self.tensors[0]

    def tag(self, tensor: Any) -> Tag:
        """What is known of a tensor (or of None)."""
        return self.tracer.tags.get(tensor, Tag()) if isinstance(tensor, Tensor) else Tag()

    def labels(self, tensor: Any) -> list[Tensor]:
        """The labels of a tensor."""
        return list(self.tag(tensor).labels)

    def emit(self, labels: Iterable[Tensor], *outputs: Tensor, parameter: bool = False, filler: bool = False) -> None:
        """Label outputs: the given ones, or all."""
        tag = Tag(tuple(distinct(labels)), parameter, filler)
        for output in outputs or self.outputs:
            self.tracer.tags[output] = tag

    def value(self, *tensors: Any) -> None:
        """Mark those tensors that are parameters as per-unit values."""
        for tensor in tensors:
            if self.tag(tensor).parameter:
                for label in self.labels(tensor):
                    self.facts.mark(label, Role.VALUE)

    def freeze(self, labels: Iterable[Tensor], reason: str) -> None:
        """Refuse the units of some labels."""
        for label in labels:
            self.facts.freeze(label, reason)

    def merge(self, label: Tensor, axes: Iterable[int]) -> Tensor:
        """Make the entries of a label along some axes one unit; the result no longer varies along them."""
        merged = label
        for axis in axes:
            merged = merged.narrow(axis, 0, 1)
        self.facts.tie(label, merged)
        return merged

    def bias(self, bias: Any, axis: int) -> None:
        """Tie a bias vector to the labels that the output carries along ``axis``."""
        if not isinstance(bias, Tensor):
            return
        self.value(bias)
        output = self.outputs[0]
        targets = [label for label in self.labels(output) if axis in varying(label)]
        for label in self.labels(bias):
            shaped = aligned(label, output.dim()) if axis == output.dim() - 1 else label.reshape(-1)
            for target in targets:
                self.facts.tie(target if axis == output.dim() - 1 else target.reshape(-1), shaped)
            if not targets:
                self.facts.freeze(label, "a bias is added to an axis that no weight computes")


Rule = Callable[[Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as what operators of these names do to labels."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


class AxisTracer(TorchDispatchMode):
    """Carry labels through every operator that runs while the mode is on.

    Args:
        facts: Where the rules write what they learn.
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
            if tensor.is_floating_point() and tensor.dim():
                self.tags[tensor] = Tag(tuple(facts.labels_of(name, tensor)), parameter=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, then let its rule label the outputs."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes = [tensor.shape for tensor in tensors]
        name = func._schema.name.split("::")[1]
        if name == "native_batch_norm" and isinstance(args[0], FakeTensor):
            result = _batch_norm_shapes(*args)
        else:
            result = func(*args, **kwargs)
        if func.namespace == "prim":
            return result
        if func._schema.is_mutable and name.endswith("_"):
            name = name[:-1]
        tags = [self.tags[tensor] for tensor in tensors if tensor in self.tags]
        known = any(tag.labels or tag.filler for tag in tags)
        if known or name in FACTORIES:
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            arguments = {
                argument.name: args[position]
                if position < len(args)
                else kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)
                for position, argument in enumerate(func._schema.arguments)
            }
            call = Call(name, func, arguments, args, kwargs, tensors, shapes, outputs, self)
            with _disable_current_modes():
                self._apply(call)
        return result

    def _apply(self, call: Call) -> None:
        if torch.Tag.pointwise in call.function.tags:
            chosen = RULES.get(call.name, RULES["pointwise"])
        else:
            chosen = RULES.get(call.name, RULES["unknown"])
        before = [(tensor, tuple(call.labels(tensor))) for tensor in call.tensors if call.tag(tensor).labels]
        chosen(call)
        handled = [*before, *((tensor, call.tag(tensor).labels) for tensor in call.outputs)]
        written = {leaf for leaf in tree_leaves((call.positional, call.keywords)) if type(leaf) is int}
        fitting = [(tensor, labels) for tensor, labels in handled if all(la.dim() == tensor.dim() for la in labels)]
        self.facts.use(self.module(), fitting, written)


def _batch_norm_shapes(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What batch normalisation returns, without the many operators that fake tensors take it apart into."""
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


_FILLS = ("empty", "zeros", "ones", "full", "rand", "randn", "empty_strided")
_NOISE = ("bernoulli", "uniform", "normal", "exponential", "random")
FACTORIES = frozenset(
    (*_FILLS, *(f"new_{n}" for n in _FILLS), *(f"{n}_like" for n in _FILLS), *_NOISE, "scalar_tensor")
)


@rule("unknown")
def unknown(call: Call) -> None:
    """Refuse whatever enters an operator that no rule knows."""
    for tensor in call.tensors:
        call.freeze(call.labels(tensor), f"unknown operator {call.name}")
    call.emit(())
