"""One parameter or buffer of a draft, on its way to a new shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fpe_lightning.pruning.columns import Columns
from fpe_lightning.pruning.smallest import Piece, pieces_of
from fpe_lightning.sites.site import Axis
from fpe_lightning.sparse.layout import MASKED, Layout, Structure
from fpe_lightning.sparse.record import Split


@dataclass
class DraftTensor:
    """One parameter or buffer on its way to a new shape.

    Attributes:
        owner: Qualified name of the module that owns it.
        name: Name within the owner.
        original: The tensor in the model, of the old shape.
        value: The tensor of the new shape; masked entries are not yet zero.
        mask: Bool tensor of the new shape, or None for a dense tensor.
        sources: For each widened axis, the old entry that every new entry copies.
        splits: Splits so far, in the order made.
        block: Consecutive rows that share a partition of the inputs; 0 where no inputs were assigned.
        separate: Whether it is put in place by itself, after all others.
        reset_state: Whether optimizers drop its state.
    """

    owner: str
    name: str
    original: Tensor
    value: Tensor
    mask: Tensor | None
    sources: dict[int, Tensor] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)
    block: int = 0
    separate: bool = False
    reset_state: bool = False

    def count(self) -> int:
        """Entries that may be non-zero; none for a buffer, which is no parameter."""
        if not isinstance(self.original, nn.Parameter):
            return 0
        return self.value.numel() if self.mask is None else int(self.mask.count_nonzero())

    def start(self, axis: Axis) -> int:
        """First entry of a stretch now: earlier splits of other stretches (of a concatenation) may have moved it."""
        source = self.sources.get(axis.dim)
        return axis.start if source is None else int((source < axis.start).sum())

    def inside(self, axes: Sequence[tuple[Axis, int]]) -> Tensor:
        """The entries of some widened axes, each with its number of children; bool, to be broadcast over the others."""
        found = torch.zeros((), dtype=torch.bool, device=self.value.device)
        for axis, alpha in axes:
            stretch = torch.zeros(self.value.shape[axis.dim], dtype=torch.bool, device=self.value.device)
            # Stretches of one axis are joined; those of different axes meet in the cells of both.
            stretch.narrow(0, self.start(axis), alpha * axis.length).fill_(True)
            found = found | stretch.view([-1 if dim == axis.dim else 1 for dim in range(self.value.dim())])
        return found

    def pieces(self, axes: Sequence[tuple[Axis, int]]) -> tuple[list[Piece], int]:
        """The weights of some widened axes, piece by piece, and how many of them may be non-zero."""
        inside = self.inside(axes).expand(self.value.shape)
        counts = inside if self.mask is None else self.mask & inside
        return pieces_of(self.value, counts), int(counts.count_nonzero())

    def keep(self, axes: Sequence[tuple[Axis, int]], pieces: Iterable[Tensor]) -> None:
        """Mask single weights: for each of :meth:`pieces` a bool tensor of its shape, True for weights that stay."""
        self.restrict(torch.cat(list(pieces)).view(self.value.shape) | ~self.inside(axes))

    def whole_mask(self) -> Tensor:
        """The mask; all True for a dense tensor."""
        return torch.ones_like(self.value, dtype=torch.bool) if self.mask is None else self.mask

    def restrict(self, mask: Tensor) -> None:
        """Restrict the mask to ``mask``, which has the new shape."""
        mask = mask.to(self.value.device)
        self.mask = mask if self.mask is None else self.mask & mask

    def columns(self) -> Columns | None:
        """The weight as blocks that lose whole columns; None where its rows have to be sorted into blocks first."""
        return None

    def stored(self) -> tuple[Layout, Structure]:
        """The layout that the tensor is put in place in, and its structure there."""
        return MASKED, {}

    def follow(self, state: Tensor) -> Tensor:
        """Copy a tensor of the old shape (a gradient, a moment) to the new one; masked entries become zero.

        A size of 1 along an axis stays 1, so that the factored moments of Adafactor follow too.
        """
        for dim, source in self.sources.items():
            # An index of a whole axis would repeat the one entry of a factored moment.
            if state.shape[dim] != 1 or self.original.shape[dim] == 1:
                state = state.index_select(dim, source.to(state.device))
        # A masked entry must not keep a moment: it would move the weight away from zero.
        if self.mask is not None and state.shape == self.mask.shape:
            state = state.masked_fill(~self.mask.to(state.device), 0)
        return state.contiguous()
