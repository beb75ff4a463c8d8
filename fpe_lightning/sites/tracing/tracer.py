"""The tracer: a dispatch mode that lets labels flow through the operators of a forward."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, ValuesView
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fpe_lightning.sites.tracing.call import Call
from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.linearity import is_linear
from fpe_lightning.sites.tracing.operators import name_of, rule_of, signature_of
from fpe_lightning.sites.tracing.rules_pointwise import FACTORIES
from fpe_lightning.sites.tracing.shapes import Shapes, is_plain_fake
from fpe_lightning.sites.tracing.tags import Tags


class AxisTracer(TorchDispatchMode):
    """Carry labels through every operator that runs while the mode is on.

    Args:
        facts: The record that the rules write to.
        state: Parameters and float buffers by qualified name.
        module: Returns the qualified name of the module whose forward is running.
        shapes: Runs the operators, if the forward runs on fake tensors.
    """

    def __init__(
        self, facts: Facts, state: dict[str, Tensor], module: Callable[[], str], shapes: Shapes | None
    ) -> None:
        super().__init__()
        self.facts = facts
        self.module = module
        self.shapes = shapes
        self.tags = Tags(keep=shapes is not None)
        for name, tensor in state.items():
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dim():
                self.tags.put(tensor, facts.tag_of(name, tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, then let its rule label the outputs."""
        if func.namespace == "prim":
            return func(*args, **kwargs or {})
        kwargs = kwargs or {}
        leaves = _leaves((args, kwargs.values()))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        # Read first, as an operator may change the shape of what it is given.
        shapes = [tensor.shape for tensor in tensors]
        tags = [self.tags.of(tensor) for tensor in tensors]
        traced = name_of(func) in FACTORIES or any(tag.labels or tag.filler for tag in tags)
        views = tuple(tensor._is_view() for tensor in tensors)
        kind = self._kind(func, leaves) if self.shapes is not None and tensors else None
        if self.shapes is None or kind is None:
            result = func(*args, **kwargs)
        else:
            result = self.shapes.run(func, args, kwargs, kind, tensors)
        if not traced:
            return result
        outputs = [leaf for leaf in _leaves([result]) if isinstance(leaf, Tensor)]
        # Facts that are recorded already are not looked at again.
        key = None if kind is None else (kind, tuple(tags), views, self.module())
        known = self.facts.calls.get(key) if key is not None else None
        if known is not None and len(known) == len(outputs):
            for output, tag in zip(outputs, known, strict=True):
                self.tags.put(output, tag)
            return result
        arguments = signature_of(func).bind(args, kwargs)
        given = (args, kwargs, tensors, shapes, outputs)
        call = Call(name_of(func), func, arguments, *given, self.facts, self.tags, self.module())
        # Labels are real tensors, and fake ones are only asked for their shapes: nothing here is for another mode.
        with torch._C._DisableTorchDispatch():
            _apply(call, leaves)
        if key is not None:
            self.facts.calls[key] = tuple(self.tags.of(output) for output in outputs)
        return result

    @staticmethod
    def _kind(func: Any, leaves: list[Any]) -> Hashable | None:
        """An operator with all that is known of its arguments; None if there is more to know than shapes."""
        key: list[Any] = [func]
        place: dict[int, int] = {}
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                key.append((type(leaf), leaf))
            elif is_plain_fake(leaf):
                same = place.setdefault(id(leaf), len(place))
                key.append((same, leaf.shape, leaf.stride(), leaf.dtype, leaf.device))
            else:
                return None
        try:
            hash(found := tuple(key))
        except TypeError:
            return None
        return found


def _leaves(values: Iterable[Any]) -> list[Any]:
    """The arguments of an operator, those in lists one by one behind the length of their list."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple, ValuesView)):
            found.append(_Length(len(value)))
            found += _leaves(value)
        else:
            found.append(value)
    return found


class _Length(int):
    """The length of a list of arguments: no number that somebody wrote."""


def _apply(call: Call, leaves: list[Any]) -> None:
    """Let the rule of an operator label its outputs, and note what every rule has in common."""
    before = [(tensor, labels) for tensor in call.tensors if (labels := call.tag(tensor).labels)]
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
    written = {leaf for leaf in leaves if type(leaf) is int}
    fitting = [(tensor, labels) for tensor, labels in handled if all(la.dim() == tensor.dim() for la in labels)]
    call.facts.use(call.module, fitting, written)
