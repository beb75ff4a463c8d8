"""How single weights of a layer move while their number stays: what a layout answers to rewiring.

A *place* is an entry of the stored weight. A place is held, or free. An update drops some held places, and grows as
many: free ones, where the gradient of the dense weight is largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpe_lightning.sparse.masked import mask_of, set_mask
from fpe_lightning.sparse.record import note_shape


@dataclass(frozen=True)
class Growth:
    """How much each place of a stored weight would gain from a new weight.

    Attributes:
        score: Float tensor of the stored shape, at least 0; -1 where no new weight can go, even if the place is free.
        child: For each place, which of several dense entries the new weight would be; None where there is only one.
    """

    score: Tensor
    child: Tensor | None = None

    @staticmethod
    def joined(parts: list[Growth]) -> Growth:
        """The growth of a whole weight from those of consecutive rows.

        Example:
            >>> Growth.joined([Growth(torch.zeros(1, 2)), Growth(torch.ones(2, 2))]).score.shape
            torch.Size([3, 2])
        """
        children = [part.child for part in parts if part.child is not None]
        return Growth(torch.cat([part.score for part in parts]), torch.cat(children) if children else None)


class Moves:
    """The moves of a dense weight with a mask; a place is an entry, and a dropped one is not grown again at once."""

    def rows(self, module: nn.Module, name: str, most: int) -> list[slice]:
        """Rows of the dense weight whose gradients are summed one after another, so that less is held at a time.

        Args:
            module: The layer.
            name: Name of the parameter.
            most: The largest number of slices.

        Returns:
            Slices that cover all rows, in order; growth is asked for one after another.
        """
        return [slice(0, len(module.get_parameter(name)))]

    def dense_shape(self, module: nn.Module, name: str) -> torch.Size:
        """The shape of the dense weight, and of its gradient."""
        return module.get_parameter(name).shape

    def held(self, module: nn.Module, name: str) -> Tensor:
        """The places that hold a weight, bool of the stored shape; a copy."""
        mask = mask_of(module, name)
        return torch.ones_like(module.get_parameter(name), dtype=torch.bool) if mask is None else mask.clone()

    def growth(self, module: nn.Module, name: str, gradient: Tensor, rows: slice) -> Growth:
        """Score the places of some rows by the magnitude of the dense gradient there.

        Args:
            module: The layer.
            name: Name of the parameter.
            gradient: Of those rows of the dense weight.
            rows: One of :meth:`rows`.
        """
        mask = mask_of(module, name)
        score = torch.full_like(gradient, -1) if mask is None else gradient.abs().masked_fill(mask[rows], -1)
        return Growth(score)

    def move(self, module: nn.Module, name: str, dropped: Tensor, grown: Tensor, growth: Growth | None) -> None:
        """Change the structure; the caller sets the weights that moved to zero.

        Args:
            module: Changed in place, its buffers too.
            name: Name of the parameter.
            dropped: Bool of the stored shape: places that lose their weight.
            grown: Places that get a new one, free before or just dropped.
            growth: Names the new weights where places are several dense entries.
        """
        mask = mask_of(module, name)
        if mask is None:
            note_shape(module, name)
            set_mask(module, name, ~dropped | grown)
        else:  # in place: other modules, compiled code and DDP may hold the same tensor
            mask.logical_and_(~dropped).logical_or_(grown)
