"""Trace a model: run its forward in training and in evaluation mode and collect the facts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.sites.tracing import (  # noqa: F401  (importing the rules registers them)
    rules_aggregate,
    rules_contract,
    rules_norm,
    rules_pointwise,
    rules_shape,
)
from fpe_lightning.sites.tracing.blocks import Blocks
from fpe_lightning.sites.tracing.containers import replaced, tensors_in
from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.sandbox import ModuleStack, Tensors, borrowed, stand_in
from fpe_lightning.sites.tracing.tracer import AxisTracer


@dataclasses.dataclass(frozen=True)
class Widening:
    """A model at other widths.

    Attributes:
        sizes: For each parameter and axis the ``(new length,)`` int64 entries of the old axis that it repeats.
        values: New values of module attributes, by (module name, attribute name).
    """

    sizes: Mapping[str, Mapping[int, Tensor]] = dataclasses.field(default_factory=dict)
    values: Mapping[tuple[str, str], Any] = dataclasses.field(default_factory=dict)

    def modules(self) -> set[str]:
        """The names of all modules that change."""
        return {name.rpartition(".")[0] for name in self.sizes} | {name for name, _ in self.values}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Example inputs of a forward."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(example_inputs: Any) -> Inputs:
        """Read a tensor, a tuple of positional arguments, a mapping of keyword arguments, or inputs read before."""
        if isinstance(example_inputs, Inputs):
            return example_inputs
        if isinstance(example_inputs, Tensor):
            return Inputs((example_inputs,), {})
        if isinstance(example_inputs, Mapping):
            return Inputs((), dict(example_inputs))
        if isinstance(example_inputs, tuple):
            return Inputs(example_inputs, {})
        raise TypeError(
            "example_inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
            f"but it is a {type(example_inputs).__name__}: wrap it in a tuple."
        )

    def doubled(self) -> Inputs:
        """The same inputs twice along the first axis, for layers that need more than one example in training."""
        args, kwargs = replaced((self.args, self.kwargs), lambda t: torch.cat([t, t]) if t.dim() else t)
        return Inputs(args, kwargs)


@dataclasses.dataclass(frozen=True)
class At:
    """How a model is run.

    Attributes:
        training: Whether the modules are in training mode.
        tensors: Makes the stand-ins for the model's tensors; one for all traces at the same widths. Real ones are for
            models whose control flow reads values.
        widening: Other widths to run at.
        known: The facts of other traces at the same widths, which are not recorded again.
    """

    training: bool
    tensors: Tensors
    widening: Widening = dataclasses.field(default_factory=Widening)
    known: Facts | None = None


def trace(model: nn.Module, inputs: Inputs, at: At, blocks: Blocks | None = None) -> Facts:
    """Run one forward of a model and collect the facts; the model is as before afterwards.

    Args:
        model: The model.
        inputs: Example inputs; in training they are repeated along the batch if the model needs more than one.
        at: Mode, stand-ins and widths.
        blocks: Takes note of the calls of blocks, or, at other widths, repeats those of blocks that are as they were.

    Returns:
        The facts of this forward.

    Raises:
        Exception: Whatever the forward raises.
    """
    tensors, widening = at.tensors, at.widening
    facts = Facts(at.known)
    with borrowed(model):
        for module in model.modules():
            vars(module)["training"] = at.training
        state = stand_in(model, tensors, widening.sizes)
        modules = dict(model.named_modules())
        for (module_name, attribute), value in widening.values.items():
            modules[module_name].__dict__[attribute] = value
        device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        stack = ModuleStack(model)
        tracer = AxisTracer(facts, state, stack, tensors.shapes)  # outside of the fake mode, because labels are real
        with tensors.active():
            args, kwargs = replaced((inputs.args, inputs.kwargs), lambda t: tensors.of(t).to(device))
            if blocks is not None and widening.sizes:
                blocks.replay(model, tracer, at.training, widening.modules())
            end = blocks.record(model, tracer, at.training) if blocks is not None and not widening.sizes else None
            with stack.watching(), tracer:
                output = model(*args, **kwargs)
            if end is not None:
                end()
        for tensor in tensors_in(output):
            for label in tracer.tags.of(tensor).labels:
                facts.freeze(label, "it reaches an output of the model")
    facts.input_shapes.update(stack.input_shapes)
    return facts
