"""What the training of a run takes: multiply-adds, and bytes of parameters, gradients, moments and traffic."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fpe_lightning.sparse.masked import mask_of
from studies.moves import Moves, Schedule, Shrink, room

if TYPE_CHECKING:
    from studies.setting import Setting

MEASURES = ("macs_nonzeros", "macs_stored", "bytes_nonzeros", "bytes_stored", "traffic_nonzeros", "traffic_stored")
"""Names of the measures: see :class:`Cost`."""
NUMBERS = 4
"""Each weight has a gradient and Adam's two moments."""
FLOAT = 4
"""Bytes of a number."""


@dataclass
class Cost:
    """What the training of one network took so far.

    Each figure comes twice: for a machine that stores and multiplies non-zeros alone, and for one that stores and
    multiplies masked weights as dense ones. A network that stays folded is stored at the size of its dense parent,
    with one more byte a weight for the child that owns it; its products are as large as those of the wide network.

    Attributes:
        macs_nonzeros: Multiply-adds of forward and backward passes, all samples and epochs, of non-zeros. Dense
            gradients by which weights grow count at their full size.
        macs_stored: The same of stored weights.
        bytes_nonzeros: The most that weights, gradients and moments took at a time, of non-zeros.
        bytes_stored: The same of stored weights, with masks.
        traffic_nonzeros: Bytes of gradients that one process of a data-parallel run sends to be summed, in all steps.
        traffic_stored: The same of stored weights.
    """

    macs_nonzeros: float = 0.0
    macs_stored: float = 0.0
    bytes_nonzeros: float = 0.0
    bytes_stored: float = 0.0
    traffic_nonzeros: float = 0.0
    traffic_stored: float = 0.0

    def copy(self) -> Cost:
        """The cost so far, for a run that goes on from here."""
        return copy.copy(self)

    def measures(self) -> dict[str, float]:
        """By name."""
        return {name: getattr(self, name) for name in MEASURES}

    def add(
        self,
        network: nn.Module,
        samples: int,
        setting: Setting,
        first: int,
        last: int,
        schedule: Schedule | None,
        alpha: int,
    ) -> None:
        """Add the epochs from ``first`` to ``last``.

        Args:
            network: As it is in these epochs.
            samples: Of an epoch.
            setting: Its size of a batch.
            first: An epoch.
            last: The epoch after them.
            schedule: How masks change.
            alpha: Children of each neuron.
        """
        epochs, steps = last - first, (last - first) * -(-samples // (setting.batch_size or samples))
        layers = [each for each in network.modules() if isinstance(each, nn.Linear)]
        masks = [mask_of(layer) for layer in layers]
        stored = [float(layer.weight.numel()) for layer in layers]
        alive = [size if mask is None else float(mask.sum()) for size, mask in zip(stored, masks, strict=True)]
        masked = sum(size for size, mask in zip(stored, masks, strict=True) if mask is not None)
        if isinstance(schedule, Shrink):
            final = room(layers[0].weight.shape, layers[-1].out_features, alpha) / stored[0]
            moments = torch.linspace(first, last, 8 * epochs) / setting.epochs
            alive[0] *= sum(schedule.density(float(done), final) for done in moments) / len(moments)
            masked = stored[0]
        others = sum(each.numel() for each in network.parameters()) - sum(stored)
        # Forward, gradients of weights, and gradients of inputs, which the first layer does not need.
        passes = [2, *[3] * (len(layers) - 1)]
        nonzeros = sum(each * count for each, count in zip(alive, passes, strict=True))
        dense = sum(each * count for each, count in zip(stored, passes, strict=True))
        if isinstance(schedule, Moves) and schedule.growth == "gradient":
            began, ended = (share * setting.epochs for share in (schedule.begin, schedule.until))
            left = max(0.0, min(last, ended) - max(first, began)) / max(epochs, 1)
            nonzeros += left / schedule.every * sum(size - each for size, each in zip(stored, alive, strict=True))
        held = sum(alive) + others, sum(stored) + others
        byte = masked
        if isinstance(schedule, Moves) and schedule.folded:
            folded = stored[0] / alpha + sum(stored[1:])
            held, byte = (held[0], folded + others), masked / alpha
        self.macs_nonzeros += nonzeros * samples * epochs
        self.macs_stored += dense * samples * epochs
        self.bytes_nonzeros = max(self.bytes_nonzeros, FLOAT * NUMBERS * held[0])
        self.bytes_stored = max(self.bytes_stored, FLOAT * NUMBERS * held[1] + byte)
        self.traffic_nonzeros += FLOAT * held[0] * steps
        self.traffic_stored += FLOAT * held[1] * steps
