"""The order in which networks that train together go through their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batches:
    """Mini-batches: in every epoch each group of networks goes through its samples in an order of its own.

    Attributes:
        size: Samples of a batch; the last of an epoch may have fewer.
        seeds: One for each group; the order of an epoch depends on it and on the epoch's number.
        first_epoch: Number of the first epoch, so that training which goes on does not repeat its orders.
    """

    size: int
    seeds: Sequence[int]
    first_epoch: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"The size of a batch has to be at least 1, found {self.size}.")

    def order(self, group: int, epoch: int, n: int) -> Tensor:
        """The order of a group's ``n`` samples, some epochs after the first.

        Example:
            >>> first, again = Batches(2, [7]), Batches(2, [1, 7], first_epoch=3)
            >>> torch.equal(first.order(0, 3, 10), again.order(1, 0, 10))
            True
        """
        generator = torch.Generator().manual_seed(1_000_003 * self.seeds[group] + self.first_epoch + epoch)
        return torch.randperm(n, generator=generator)
