"""Repeated blocks: a trial that widens one of them takes the outputs of the others from the first trace.

Only calls whose outcome follows from their arguments are taken: no objects of unknown kind go in, no attribute of the
block changes, and no argument is written to.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fpe_lightning.sites.tracing.facts import Facts
from fpe_lightning.sites.tracing.shapes import Shape, fake_empty, is_plain_fake
from fpe_lightning.sites.tracing.tags import Tag
from fpe_lightning.sites.tracing.tracer import AxisTracer

PLAIN = (bool, int, float, str, type(None))


class Output(NamedTuple):
    """A tensor that a block returns: one of its arguments, or a fresh one."""

    argument: int | None
    like: Tensor
    tag: Tag


class Record(NamedTuple):
    """One call of a block."""

    given: Hashable
    outputs: tuple[Any, ...]
    spec: TreeSpec


class Blocks:
    """The calls of a model's repeated blocks, by mode and name, in the order of the forward.

    Args:
        model: The model. Its blocks are the modules with children whose class occurs several times.
    """

    def __init__(self, model: nn.Module) -> None:
        found = {name: module for name, module in model.named_modules() if name and len(module._modules)}
        often = Counter(type(module) for module in found.values())
        self._names = [name for name, module in found.items() if often[type(module)] > 1]
        self._calls: dict[tuple[bool, str], list[Record | None]] = {}
        self._facts: Facts | None = None

    def record(self, model: nn.Module, tracer: AxisTracer, training: bool) -> Callable[[], None]:
        """Note all calls of blocks of a borrowed model; the function that is returned ends that."""
        modules = dict(model.named_modules())
        self._facts = tracer.facts
        before = {name: _attributes(modules[name]) for name in self._names}
        for name in self._names:
            self._calls[training, name] = []
            forward = self._recorded(modules[name].forward, tracer, self._calls[training, name])
            modules[name].__dict__["forward"] = forward

        def end() -> None:
            for name, attributes in before.items():
                modules[name].__dict__.pop("forward")
                if _attributes(modules[name]) != attributes:
                    self._calls.pop((training, name))

        return end

    def _recorded(self, forward: Any, tracer: AxisTracer, calls: list[Record | None]) -> Any:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = _given(args, kwargs)
            inputs, _ = tree_flatten((args, kwargs))
            tensors = [leaf for leaf in inputs if isinstance(leaf, Tensor)]
            tags = [tracer.tags.of(tensor) for tensor in tensors]
            place = len(calls)
            calls.append(None)
            result = forward(*args, **kwargs)
            leaves, spec = tree_flatten(result)
            unchanged = all(tracer.tags.of(t) is tag for t, tag in zip(tensors, tags, strict=True))
            if given is None or not unchanged or _given(args, kwargs) != given:
                return result
            if all(isinstance(leaf, PLAIN) or (isinstance(leaf, Tensor) and is_plain_fake(leaf)) for leaf in leaves):
                positions = {id(tensor): position for position, tensor in reversed(list(enumerate(tensors)))}
                outputs = (
                    Output(positions.get(id(leaf)), leaf, tracer.tags.of(leaf)) if isinstance(leaf, Tensor) else leaf
                    for leaf in leaves
                )
                calls[place] = Record(given, tuple(outputs), spec)
            return result

        return run

    def replay(self, model: nn.Module, tracer: AxisTracer, training: bool, widened: Collection[str]) -> None:
        """Let blocks of a borrowed model return what they returned before, unless they get something else now.

        Args:
            model: The model.
            tracer: Traces it at other widths; its facts know all parameters.
            training: Whether in training mode.
            widened: Names of modules that are not as they were.
        """
        assert self._facts is not None
        modules = dict(model.named_modules())
        moved = _Moved(self._facts, tracer.facts)
        for name in self._names:
            calls = self._calls.get((training, name))
            if calls and not any(other == name or other.startswith(f"{name}.") for other in widened):
                forward = _replayed(modules[name].forward, tracer, iter(calls), moved)
                modules[name].__dict__["forward"] = forward


def _replayed(forward: Any, tracer: AxisTracer, calls: Any, moved: _Moved) -> Any:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        record = next(calls, None)
        if record is None or _given(args, kwargs) != record.given:
            return forward(*args, **kwargs)
        outputs = [leaf for leaf in record.outputs if isinstance(leaf, Output)]
        tags = [moved.tag(output.tag) for output in outputs]
        if any(tag is None for tag in tags):
            return forward(*args, **kwargs)
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        given = iter(tags)
        leaves: list[Any] = []
        for leaf in record.outputs:
            if not isinstance(leaf, Output):
                leaves.append(leaf)
                continue
            tag = next(given)
            if leaf.argument is None:
                old = leaf.like
                leaves.append(fake_empty(old, Shape(old.shape, old.stride(), old.dtype, old.device)))
                tracer.tags.put(leaves[-1], tag or Tag())
            else:
                leaves.append(tensors[leaf.argument])
        return tree_unflatten(leaves, record.spec)

    return run


class _Moved:
    """The tags of one trace in the numbers of another, where other axes are longer."""

    def __init__(self, old: Facts, new: Facts) -> None:
        self._number = np.full(old.size, -1)
        self._number[0] = 0
        for span in old.spans:
            after = new.span(span.parameter, span.dim)
            if after.length == span.length:
                self._number[span.numbers] = np.arange(after.start, after.start + after.length)
        self._tags: dict[Tag, Tag | None] = {}

    def tag(self, tag: Tag) -> Tag | None:
        """A tag in new numbers; None if it names entries of an axis that was widened."""
        if tag not in self._tags:
            with torch._C._DisableTorchDispatch():  # labels are real tensors, also while fake ones are computed with
                labels = [self._number[label.numpy()] for label in tag.labels]
                known = all((label >= 0).all() for label in labels)
                moved = Tag(tuple(map(torch.from_numpy, labels)), tag.parameter, tag.filler)
            self._tags[tag] = (moved if labels else tag) if known else None
        return self._tags[tag]


def _given(args: Any, kwargs: Any) -> Hashable | None:
    """Everything that a block's outputs depend on; None if there are arguments of other kinds."""
    leaves, spec = tree_flatten((args, kwargs))
    given: list[Hashable] = [repr(spec)]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if not is_plain_fake(leaf):
                return None
            given.append((leaf.shape, leaf.stride(), leaf.dtype))
        elif isinstance(leaf, PLAIN):
            given.append((type(leaf), leaf))
        else:
            return None
    return tuple(given)


def _attributes(block: nn.Module) -> list[tuple[str, int, int]]:
    """The attributes of a block and of all modules in it, by identity, and the sizes of containers."""
    return [
        (name, id(value), len(value) if isinstance(value, (list, dict, set)) else 0)
        for module in block.modules()
        for name, value in vars(module).items()
        if name != "forward"
    ]
