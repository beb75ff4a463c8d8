"""The facts of a trace: statements of the operators of a forward about the entries of parameter axes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import torch
from torch import Tensor

from fpe_lightning.sites.tracing.labels import UNLABELLED, along
from fpe_lightning.sites.tracing.tags import Tag

MANY = 4096  # entries above which it pays to drop repetitions


class Role(IntFlag):
    """The role of a parameter entry for the unit that it belongs to."""

    PRODUCER = 1
    VALUE = 2
    CONSUMER = 4
    DEPTHWISE = 8
    INPUT = 16  # contracted over, whether or not what it is contracted with is labelled


@dataclass(frozen=True)
class Span:
    """The numbers given to the entries of one parameter axis: ``start .. start + length - 1``."""

    parameter: str
    dim: int
    start: int
    length: int

    @property
    def numbers(self) -> slice:
        """The numbers as a slice."""
        return slice(self.start, self.start + self.length)


@dataclass(frozen=True)
class Use:
    """A size that a module met in its own forward, and the label of the axis that had it.

    Attributes:
        module: Qualified name of the module whose code ran.
        size: The size, or the position at which the axis was cut.
        axis: Position of the axis counted from the end (-1 is the last), or None for a cut.
        label: Label of the entries that the size counts.
        written: Whether the number was an argument of the operator, so that the code must have written it.
    """

    module: str
    size: int
    axis: int | None
    label: Tensor
    written: bool = False


class Facts:
    """Everything that one or several traces of a model say; ``resolve`` reads it.

    Attributes:
        spans: Numbered parameter axes.
        ties: Pairs of entries that belong to one unit, as ``(2, n)`` arrays with how they met
            (``"sum"``, ``"product"`` of two activations, or ``""``).
        frozen: Entries that must not be widened, with the reason.
        bundles: Entries that can only be widened together, with the reason.
        bends: Entries that enter an operator which is not linear in them.
        roles: Entries and their roles, in the order of the forward.
        groupings: Labels cut into groups by normalisation or grouped convolution; copies must stay in their group.
        uses: Sizes that modules met.
        input_shapes: Shape of the first argument of each module's first call, by qualified name.
        calls: The tags of the outputs of each kind of operator call whose facts are recorded already, so that calls
            that a second trace repeats are not looked at again.

    Args:
        known: The facts of another trace of the model at the same widths. Entries get the same numbers, and facts that
            it holds are not recorded again.
    """

    def __init__(self, known: Facts | None = None) -> None:
        self.spans: list[Span] = []
        self.ties: list[tuple[np.ndarray, str]] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.bundles: list[tuple[np.ndarray, str]] = []
        self.bends: list[np.ndarray] = []
        self.roles: list[tuple[np.ndarray, Role]] = []
        self.groupings: list[np.ndarray] = []
        self.uses: list[Use] = []
        self.input_shapes: dict[str, tuple[int, ...]] = {}
        self._axes: dict[tuple[str, int], Span] = {}
        self._tags: dict[str, Tag] = {}
        self.calls: dict[Hashable, tuple[Tag, ...]] = {}
        if known is not None:
            self.spans, self._axes, self._tags = known.spans, known._axes, known._tags
            self.calls = dict(known.calls)

    @property
    def size(self) -> int:
        """One more than the largest number."""
        return self.spans[-1].start + self.spans[-1].length if self.spans else UNLABELLED + 1

    def tag_of(self, name: str, parameter: Tensor) -> Tag:
        """Number the axes of a parameter (once) and return its tag, with one label for each axis of size above 1."""
        if name not in self._tags:
            self._tags[name] = Tag(tuple(self._labels_of(name, parameter)), parameter=True)
        return self._tags[name]

    def _labels_of(self, name: str, parameter: Tensor) -> list[Tensor]:
        labels = []
        for dim, length in enumerate(parameter.shape):
            if length < 2:
                continue
            span = self._axes.get((name, dim))
            if span is None:
                span = self._axes[name, dim] = Span(name, dim, self.size, length)
                self.spans.append(span)
            labels.append(along(torch.arange(span.start, span.start + length), dim, parameter.dim()))
        return labels

    def absorb(self, other: Facts) -> None:
        """Add the facts of another trace of the same model; both number the entries alike."""
        if not self.spans:
            self.spans, self._axes, self._tags = other.spans, other._axes, other._tags
        self.calls.update(other.calls)
        for name in ("ties", "frozen", "bundles", "bends", "roles", "groupings", "uses"):
            getattr(self, name).extend(getattr(other, name))
        self.input_shapes = {**other.input_shapes, **self.input_shapes}

    def span(self, parameter: str, dim: int) -> Span:
        """The span of one parameter axis."""
        return self._axes[parameter, dim]

    def tie(self, first: Tensor, second: Tensor, how: str = "") -> None:
        """Say that two labels that broadcast against each other name the same units."""
        first, second = torch.broadcast_tensors(first, second)
        pairs = np.stack([first.reshape(-1).numpy(), second.reshape(-1).numpy()])
        differ = pairs[0] != pairs[1]
        if not differ.all():
            pairs = pairs[:, differ]
        if pairs.shape[1] > MANY:  # one number for each pair sorts faster than pairs
            codes = np.sort(pairs[0] * self.size + pairs[1])
            pairs = np.stack(np.divmod(codes[np.diff(codes, prepend=-1) > 0], self.size))
        if pairs.shape[1]:
            self.ties.append((pairs, how))

    def freeze(self, label: Tensor, reason: str) -> None:
        """Refuse the units of a label."""
        self.frozen.append((_numbers(label), reason))

    def bundle(self, label: Tensor, reason: str) -> None:
        """Say that the units of a label can only be widened all together."""
        self.bundles.append((_numbers(label), reason))

    def bend(self, labels: Iterable[Tensor]) -> None:
        """Record that the units of some labels enter an operator which is not linear in them."""
        self.bends.extend(_numbers(label) for label in labels)

    def mark(self, label: Tensor, role: Role) -> None:
        """Record the roles of the entries of a parameter's label."""
        self.roles.append((_numbers(label), role))

    def group(self, label: Tensor, groups: int) -> None:
        """Record that the entries of a label are cut into consecutive groups that copies must not leave."""
        self.groupings.append(label.reshape(groups, -1).numpy())

    def use(self, module: str, tensors: Sequence[tuple[Tensor, Sequence[Tensor]]], written: set[int]) -> None:
        """Record the sizes of the labelled axes of tensors that a module's code handled, and the numbers it wrote."""
        for tensor, labels in tensors:
            for label in labels:
                for axis, size in enumerate(label.shape):
                    if size > 1:
                        length = int(tensor.shape[axis])
                        self.uses.append(Use(module, length, axis - label.dim(), label, length in written))


def _numbers(label: Tensor) -> np.ndarray:
    """The entries of a label, without most of the repetitions where they are many."""
    numbers = label.reshape(-1).numpy()
    if len(numbers) <= MANY or (numbers[1:] > numbers[:-1]).all():
        return numbers
    # A table of what was seen is faster than sorting.
    first = int(numbers.min())
    seen = np.zeros(int(numbers.max()) - first + 1, dtype=bool)
    seen[numbers - first] = True
    return np.flatnonzero(seen) + first
