"""Training samples for partitions and pruning rules that need them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from fpe_lightning.callbacks.lightnings import MisconfigurationException

SAMPLES = 4096
"""At most as many samples of the first training batches are kept."""


class TrainingSamples:
    """Samples and class numbers: those of the datamodule, or of the first training batches.

    A datamodule gives them by a method ``training_samples()`` that returns ``(x, y)``. Otherwise batches are noted as
    they come, as long as a split is due that needs them; they are part of the callback's state, so that a resumed run
    splits by the same samples.
    """

    def __init__(self) -> None:
        self._x: list[Tensor] = []
        self._y: list[Tensor] = []

    def clear(self) -> None:
        """Forget all samples."""
        self._x.clear()
        self._y.clear()

    def add(self, trainer: pl.Trainer, batch: Any) -> None:
        """Note a training batch ``(x, y)``, unless the datamodule gives samples or there are enough."""
        if _own_samples(trainer) is not None or sum(map(len, self._x)) >= SAMPLES:
            return
        if not (isinstance(batch, (list, tuple)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            return
        x, y = batch
        self._x.append(x.detach().cpu())
        self._y.append(y.detach().cpu())

    def of(self, trainer: pl.Trainer) -> tuple[Tensor, Tensor]:
        """The samples ``(n, inputs)`` and class numbers ``(n,)``, equal on all processes.

        Raises:
            MisconfigurationException: If there are none, or the targets are no class numbers.
        """
        own = _own_samples(trainer)
        if own is not None:
            x, y = own()
        elif self._x:
            x, y = torch.cat(self._x), torch.cat(self._y)
            x, y = trainer.strategy.broadcast((x, y))
        else:
            raise MisconfigurationException(
                "ExpansionCallback needs training samples for its partition or its pruning rule, and there are none: "
                "batches have to be pairs `(x, y)` of tensors, or the datamodule needs a method `training_samples()` "
                "that returns such a pair."
            )
        return x.flatten(1), _class_numbers(y)

    def state_dict(self) -> dict[str, Any]:
        """The samples noted so far, if any."""
        return {"samples": (self._x, self._y)} if self._x else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take samples back."""
        self._x, self._y = map(list, state.get("samples", ([], [])))


def _own_samples(trainer: pl.Trainer) -> Any:
    return getattr(getattr(trainer, "datamodule", None), "training_samples", None)


def _class_numbers(y: Tensor) -> Tensor:
    """Targets of a binary loss are 0.0 and 1.0, perhaps ``(n, 1)``; class numbers stay as they are."""
    flat = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if flat.is_floating_point() and bool(((flat == 0) | (flat == 1)).all()):
        return flat.bool()
    return flat
