"""One operator call of a trace, as rules see it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpe_lightning.sites.tracing.facts import Facts, Role
from fpe_lightning.sites.tracing.labels import aligned, distinct, varying
from fpe_lightning.sites.tracing.tags import UNTAGGED, Tag, Tags


@dataclass
class Call:
    """One operator call, as the rules see it.

    Attributes:
        name: Operator name without overload or the underscore of in-place forms, as it is registered.
        function: The operator.
        arguments: Arguments by the names of the operator's schema.
        positional: Arguments as they were passed.
        tensors: All tensors among the arguments.
        shapes: Shapes of ``tensors`` before the call.
        outputs: All tensors that the call returned.
        facts: The record that rules write to.
        tags: The tag of each tensor that has one.
        module: Qualified name of the module whose forward is running.
    """

    name: str
    function: Any
    arguments: dict[str, Any]
    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    tensors: list[Tensor]
    shapes: list[torch.Size]
    outputs: list[Tensor]
    facts: Facts
    tags: Tags
    module: str

    @property
    def inplace(self) -> bool:
        """Whether the operator writes into its first argument."""
        return bool(self.function._schema.is_mutable)

    @property
    def input(self) -> Tensor:
        """The first tensor argument."""
        return self.tensors[0]

    def tag(self, tensor: Any) -> Tag:
        """The tag of a tensor; an empty one for None and for tensors that have none."""
        return self.tags.of(tensor) if isinstance(tensor, Tensor) else UNTAGGED

    def labels(self, tensor: Any) -> list[Tensor]:
        """The labels of a tensor."""
        return list(self.tag(tensor).labels)

    def emit(self, labels: Iterable[Tensor], *outputs: Tensor, parameter: bool = False, filler: bool = False) -> None:
        """Label outputs: the given ones, or all."""
        tag = Tag(tuple(distinct(labels)), parameter, filler)
        for output in outputs or self.outputs:
            self.tags.put(output, tag)

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
