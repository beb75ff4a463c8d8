"""One interface for layouts: how the weight of a layer is stored, and how the layer multiplies by it.

A layout is one object behind one name. Expansion, checkpoints, the tuner and the counters ask the object; none of them
knows which layouts there are. To add a layout, subclass :class:`Layout` and call :func:`register_layout`.

Every layer is masked at first: a dense weight, and a bool mask of its shape. A layout takes such a weight, and gives it
back. Its *structure* (which blocks, which codes) is a dict of buffers of the layer, so that a ``state_dict`` alone
tells how the layer is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.registry import Registry
from fpe_lightning.sparse.conv1d import has_inputs_first, made_class
from fpe_lightning.sparse.guard import PREFIX
from fpe_lightning.sparse.masked import mask_of, masked_class, set_mask
from fpe_lightning.sparse.moves import Moves
from fpe_lightning.sparse.prepared import PreparedModule

Structure = dict[str, Tensor]
"""The structure that a layout keeps of a mask: tensors by the names of their buffers; empty for the masked layout."""

PLAN = "fpe_plan"
"""Name of the attribute that a layer computes from its structure; never saved."""


@dataclass(frozen=True)
class Storage:
    """One way to store a weight.

    Attributes:
        layout: Name of the layout.
        structure: The structure that it stores the weight with.
    """

    layout: str
    structure: Structure


class Layout:
    """How the weight of a layer is stored; the methods of the base class are those of a dense weight with a mask.

    A subclass names its layer classes and its buffers, and implements :meth:`fit`. A layout that stores the weight in
    another shape sets ``packs`` and implements :meth:`pack`, :meth:`unpack` and :meth:`stored_shape` too.
    """

    classes: ClassVar[Mapping[type[nn.Module], type[nn.Module]]] = {}
    """The class of a stored layer, for each torch class. Each has the torch class as its attribute ``fpe_plain``."""
    transposed: ClassVar[type[nn.Module] | None] = None
    """A mixin for linear layers whose weight has its inputs first (see :mod:`fpe_lightning.sparse.conv1d`)."""
    buffers: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers that hold the structure, each of which begins with ``fpe_``."""
    packs: ClassVar[bool] = False
    """Whether the parameter has another shape than the dense weight."""
    block_order: ClassVar[bool] = False
    """Whether the children of one number should be consecutive units; else the children of one parent are."""
    moves: ClassVar[Moves | None] = None
    """How single weights move to other places of a stored weight; None where none can."""
    kind: ClassVar[str] = "masked"
    """An adjective, for messages: "there is no grouped form of Bilinear"."""
    phrase: ClassVar[str] = "with a mask"
    """How the weight is stored, for messages: "the weight cannot be stored in blocks"."""

    def holds(self, module: nn.Module) -> bool:
        """Whether a module's weight is stored in this layout now."""
        return bool(self.buffers) and all(module._buffers.get(name) is not None for name in self.buffers)

    def cannot_hold(self, module: nn.Module) -> str | None:
        """Why no weight of a module can be stored in this layout, in a few words; None where it may."""
        plain = plain_class(module)
        if self.stored_class(plain) is None or not (type(module) is plain or "fpe_plain" in vars(type(module))):
            return f"there is no {self.kind} form of {type(module).__name__}"
        if module._parameters.get("weight") is None or mask_of(module, "bias") is not None:
            return "its weight is computed from other parameters, or its bias is masked"
        groups = getattr(module, "groups", 1)
        if self.packs and groups != 1:  # its weight has the inputs of one group alone, which no packed form expects
            return f"the convolution already has {groups} groups"
        return None

    def stored_class(self, plain: type[nn.Module]) -> type[nn.Module] | None:
        """The class of a stored layer; None where a class has no stored form."""
        if self.transposed is not None and has_inputs_first(plain):
            return made_class(self.transposed, plain, masked=not self.packs)
        return self.classes.get(plain)

    def cannot_split(self, alpha: int) -> str | None:
        """Why units must not have ``alpha`` children each; None where they may.

        Returns:
            The rest of a sentence that begins with the layout's name, with a remedy.
        """
        return None

    def no_kernel(self, device: torch.device) -> str | None:
        """Why a device has no kernel of this layout, in a few words; such a layout is never timed there."""
        return None

    def fit(self, module: nn.Module, mask: Tensor, rows: int = 0) -> Structure | str:
        """The structure that stores a module's weight.

        Args:
            module: The module; it may be narrower than ``mask`` still.
            mask: Bool, of the shape of the dense weight, True where it may be non-zero.
            rows: Consecutive rows that share a partition of the inputs; 0 where that is not known.

        Returns:
            The structure, or why there is none, in a few words.
        """
        raise NotImplementedError

    def check(self, module: nn.Module, structure: Structure, mask: Tensor | None) -> str | None:
        """Why a module cannot take a structure that a checkpoint holds, in a few words; None where it can.

        Args:
            module: The module, in any layout.
            structure: The structure in the checkpoint.
            mask: The mask next to it, of the stored weight's shape.
        """
        return self.cannot_hold(module)

    def malformed(self, structure: Structure) -> str | None:
        """Why tensors that a checkpoint holds are no structure of this layout, in a few words; None where they may be.

        Args:
            structure: Tensors that nothing is known of but their names and that they have memory of their own.
        """
        return None

    def structure(self, module: nn.Module) -> Structure:
        """The structure of a module that is stored in this layout."""
        return {name: module.get_buffer(name) for name in self.buffers}

    def mask(self, module: nn.Module) -> Tensor | None:
        """The mask of a stored weight, bool and of the stored shape; None where every stored entry may be non-zero."""
        return mask_of(module)

    def dense_shape(self, module: nn.Module) -> torch.Size:
        """The shape of the dense weight that a stored one stands for."""
        weight = module.get_parameter("weight")
        if not self.packs:
            return weight.shape
        layer: Any = module
        if isinstance(module, nn.Linear):
            return torch.Size([layer.out_features, layer.in_features])
        return torch.Size([layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size])

    def stored_shape(self, structure: Structure, shape: torch.Size) -> torch.Size:
        """The shape in which a dense weight of the given shape is stored.

        Raises:
            ValueError: If a structure from a checkpoint fits no weight of this shape, in a few words.
        """
        return shape

    def turn(self, module: nn.Module, dense: Tensor) -> Tensor:
        """A tensor of the dense weight's shape as :meth:`pack` reads it, and back."""
        return dense

    def pack(self, dense: Tensor, structure: Structure) -> Tensor:
        """Store a tensor of the dense weight's shape: the weight, a mask, a gradient or a moment; any dtype."""
        return dense

    def unpack(self, stored: Tensor, structure: Structure, shape: torch.Size) -> Tensor:
        """The inverse of :meth:`pack`, differentiable; zero (or False) where nothing is stored."""
        return stored

    def put_on(self, module: nn.Module, structure: Structure) -> None:
        """Make a module one of this layout. Its weight is not converted: the caller puts a stored one in its place.

        A layout that packs takes the mask away, as its shape no longer fits; any other needs it there.
        """
        if self.packs and mask_of(module) is not None:
            set_mask(module, "weight", None)
        stored = self.stored_class(plain_class(module))
        assert stored is not None
        module.__class__ = stored
        for name, tensor in structure.items():
            module.register_buffer(name, tensor)
        if isinstance(module, PreparedModule):
            module.prepare()

    def take_off(self, module: nn.Module) -> None:
        """The inverse of :meth:`put_on`; a mask that fits the dense weight stays."""
        if self.packs and mask_of(module) is not None:
            set_mask(module, "weight", None)
        for name in self.buffers:
            module._buffers.pop(name, None)
        module.__dict__.pop(PLAN, None)
        plain = plain_class(module)
        module.__class__ = plain if mask_of(module) is None else masked_class(plain)

    def detail(self, module: nn.Module) -> str:
        """A word for each thing that the time of a layer depends on and its printed form does not say."""
        return ""

    def nbytes(self, module: nn.Module) -> int:
        """Bytes of a stored weight, with its mask and its structure."""
        held = [module.get_parameter("weight"), mask_of(module), *self.structure(module).values()]
        return sum(tensor.nbytes for tensor in held if tensor is not None)


class Masked(Layout):
    """A dense weight and its mask, which holds any structure of any module (see :mod:`fpe_lightning.sparse.masked`)."""

    moves = Moves()

    @override
    def holds(self, module: nn.Module) -> bool:
        return layout_of(module) is self

    @override
    def cannot_hold(self, module: nn.Module) -> str | None:
        return None

    @override
    def fit(self, module: nn.Module, mask: Tensor, rows: int = 0) -> Structure | str:
        return {}


MASKED = Masked()
LAYOUTS: Registry[Layout] = Registry("layout")


def register_layout(name: str, layout: Layout) -> None:
    """Add a layout, for ``Expansion(layout=name)``, for the tuner and for every checkpoint.

    Args:
        name: Its name.
        layout: The layout.

    Raises:
        ValueError: If the name is taken, or its buffers could be mistaken for somebody else's.

    Example:
        >>> register_layout("masked", Masked())
        Traceback (most recent call last):
        ...
        ValueError: The layout 'masked' is registered already; choose another name.
    """
    # Buffers tell in a file which layout a layer has, so that no two layouts may share a name.
    taken = {buffer: other for other in LAYOUTS for buffer in LAYOUTS.get(other).buffers}
    for buffer in layout.buffers:
        if not buffer.startswith(PREFIX) or buffer in taken:
            why = f"belongs to the layout {taken[buffer]!r}" if buffer in taken else f"does not begin with `{PREFIX}`"
            raise ValueError(f"The layout {name!r} has a buffer `{buffer}`, which {why}; rename it.")
    LAYOUTS.register(name, layout)


register_layout("masked", MASKED)


def layout_of(module: nn.Module) -> Layout:
    """The layout that a module's weight is stored in.

    Example:
        >>> layout_of(nn.Linear(4, 2)) is LAYOUTS.get("masked")
        True
    """
    # Asked for every module of every model: most have no buffer of ours.
    if not any(name.startswith(PREFIX) for name in module._buffers):
        return MASKED
    others = (LAYOUTS.get(name) for name in LAYOUTS if name != "masked")
    return next((layout for layout in others if layout.holds(module)), MASKED)


def is_structure(name: str) -> bool:
    """Whether a tensor of a ``state_dict`` is structure: a mask, a record, or a buffer of a layout.

    Args:
        name: Its name, with or without the names of the modules around it.

    Example:
        >>> is_structure("net.0.fpe_mask_weight"), is_structure("net.0.weight")
        (True, False)
    """
    return name.rpartition(".")[2].startswith(PREFIX)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before it was masked or stored in a layout.

    Example:
        >>> plain_class(nn.Linear(4, 2)).__name__
        'Linear'
    """
    plain: type[nn.Module] = getattr(type(module), "fpe_plain", type(module))
    return plain
