"""Sums over an epoch, kept as tensors, because logging every step costs more than the step of a small network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Totals:
    """Mean loss and accuracy over the batches of an epoch, of any sizes, on one process or several.

    Example:
        >>> totals = Totals()
        >>> totals.add(torch.tensor(2.0), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> totals.add(torch.tensor(1.0), torch.tensor([5]), torch.tensor([5]))
        >>> loss, accuracy = totals.pop()
        >>> float(loss), float(accuracy)
        (1.75, 0.75)
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._rows: list[int] = []

    def add(self, loss: Tensor, predictions: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            loss: Mean loss over the batch, a scalar.
            predictions: ``(batch,)`` class numbers.
            labels: ``(batch,)`` class numbers.
        """
        self._losses.append(loss.detach() * len(labels))
        self._correct.append((predictions == labels).sum())
        self._rows.append(len(labels))

    def pop(self, gather: Callable[[Tensor], Any] | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean loss and accuracy so far, NaN without a batch, and reset.

        Args:
            gather: Stacks a tensor over processes, as ``LightningModule.all_gather`` does.

        Returns:
            Two scalars.
        """
        # Three sums in one tensor, so that one gather serves all.
        rows = float(sum(self._rows))
        loss = torch.stack(self._losses).sum() if self._losses else torch.tensor(0.0)
        correct = torch.stack(self._correct).sum() if self._correct else torch.tensor(0)
        sums = torch.stack([loss.float(), correct.float(), loss.new_tensor(rows, dtype=torch.float32)])
        if gather is not None:
            sums = gather(sums).view(-1, 3).sum(0)
        self._losses, self._correct, self._rows = [], [], []
        return sums[0] / sums[2], sums[1] / sums[2]
