"""Which hidden widths of a model can be widened: producer -> pass-through -> consumers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """A stretch of one parameter axis whose entries belong to the units (neurons, channels) of a site.

    Widening by ``alpha`` repeats every run of ``run`` consecutive entries ``alpha`` times in place, so that the
    children of a unit are adjacent: ``run=1`` repeats each entry (a plain ``nn.Linear``), ``run=49`` repeats the 7x7
    block of columns that a flattened channel owns.

    Attributes:
        parameter: Qualified name of the parameter or buffer, such as ``"net.0.weight"``.
        dim: The axis of the tensor.
        start: First entry of the stretch.
        length: Number of entries in the stretch; a multiple of ``run``.
        run: Number of consecutive entries that are repeated as a block.
        units: ``(length,)`` int64, the unit that each entry belongs to, in ``0 .. width - 1``.
    """

    parameter: str
    dim: int
    start: int
    length: int
    run: int = 1
    units: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Producer(Axis):
    """The axis of a weight that computes the units, and the axis of the inputs that it is contracted over.

    Attributes:
        input_dim: The axis of the inputs, whose entries are partitioned among the children.
    """

    input_dim: int = 1


@dataclass(frozen=True)
class Attribute:
    """An integer (or an entry of a tuple of integers) of a module that has to grow with the width.

    Its value after widening by ``alpha`` is ``value + (alpha - 1) * growth``.

    Attributes:
        module: Qualified name of the module; ``""`` is the root.
        name: Attribute name, such as ``"out_features"``.
        growth: How much it grows for each additional copy of the units.
        index: Position inside the tuple, or None for a plain integer.
    """

    module: str
    name: str
    growth: int
    index: int | None = None


@dataclass(frozen=True)
class Site:
    """A hidden width that can be widened without touching inputs, outputs or a residual stream.

    Attributes:
        name: Qualified name of the (first) producing module.
        width: Number of units (neurons, channels).
        fan_in: Number of inputs of each unit of the first producer.
        producers: Weights that compute the units; several in gated feed-forward networks.
        values: Per-unit values that are copied to the children: biases, norms, running statistics, depthwise kernels.
        consumers: Weights that read the units.
        attributes: Integers of modules that grow with the width.
        kind: ``"hidden"``, ``"gated"`` (several producers multiplied together) or ``"stream"`` (residual).
        linear: Whether all operators between producers and consumers are linear, as between the factors of a LoRA
            adapter; a split has nothing to gain there.
        input_shapes: Shape of the input of each module that owns a producer or a consumer, on the example inputs, by
            module name. Layouts are timed on these shapes.
    """

    name: str
    width: int
    fan_in: int
    producers: tuple[Producer, ...]
    values: tuple[Axis, ...]
    consumers: tuple[Axis, ...]
    attributes: tuple[Attribute, ...] = ()
    kind: str = "hidden"
    linear: bool = False
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)

    def axes(self) -> tuple[Axis, ...]:
        """Producers, values and consumers, in this order."""
        return (*self.producers, *self.values, *self.consumers)

    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters and buffers that the site touches, each once, in the order of :meth:`axes`.

        Example:
            >>> Site("0", 8, 4, (Producer("0.weight", 0, 0, 8),), (), (Axis("2.weight", 1, 0, 8),)).parameters()
            ('0.weight', '2.weight')
        """
        return tuple(dict.fromkeys(axis.parameter for axis in self.axes()))

    def map_axes(self, change: Callable[[Any], Any]) -> Site:
        """The same site with every axis changed.

        Args:
            change: Takes an axis and returns one of the same kind; called in the order of :meth:`axes`.

        Example:
            >>> site = Site("0", 8, 4, (), (), (Axis("2.weight", 1, 0, 8),))
            >>> site.map_axes(lambda axis: replace(axis, run=8)).consumers[0].run
            8
        """
        return replace(
            self,
            producers=tuple(map(change, self.producers)),
            values=tuple(map(change, self.values)),
            consumers=tuple(map(change, self.consumers)),
        )

    def inside(self, module: str) -> Site:
        """The same site, seen from a module further up.

        Args:
            module: Qualified name of the module that the site belongs to; ``""`` leaves all names as they are.

        Example:
            >>> site = Site("0", 8, 4, (), (), (Axis("2.weight", 1, 0, 8),))
            >>> site.inside("net").name, site.inside("net").consumers[0].parameter
            ('net.0', 'net.2.weight')
        """
        # Names of axes, attributes and input shapes move; numbers stay.
        moved = self.map_axes(lambda axis: replace(axis, parameter=_joined(module, axis.parameter)))
        return replace(
            moved,
            name=_joined(module, self.name),
            attributes=tuple(replace(each, module=_joined(module, each.module)) for each in self.attributes),
            input_shapes={_joined(module, owner): shape for owner, shape in self.input_shapes.items()},
        )


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}".strip(".")
