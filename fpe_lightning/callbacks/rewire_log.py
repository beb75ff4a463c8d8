"""What the loggers of a Trainer get to see of rewired masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from fpe_lightning.callbacks.lightnings import instances
from fpe_lightning.interference import LayerState, has_weight
from fpe_lightning.rewiring import RewireReport, Weight

NEURONS, INPUTS = 64, 256
"""The corner of a mask that its figure shows: its history is kept, a bit for each entry and update."""


class RewireLog:
    """Share moved, overlap with the first mask and fan-in for every logger; a histogram and a figure for TensorBoard.

    Example:
        >>> RewireLog().state_dict()
        {}
    """

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._corners: dict[str, list[Tensor]] = {}
        self._steps: dict[str, list[int]] = {}

    def see(self, trainer: pl.Trainer, weights: Sequence[Weight]) -> None:
        """Keep the first mask of each weight; one whose shape a split changed begins again."""
        if not trainer.loggers:
            return
        for weight in weights:
            mask = mask_of_neurons(weight)
            if weight.name not in self._first or len(self._first[weight.name]) != len(_packed(mask)):
                self._first[weight.name] = _packed(mask)
                self._corners[weight.name], self._steps[weight.name] = [], []
                self._keep(weight.name, mask, trainer.global_step)

    def log(self, trainer: pl.Trainer, report: RewireReport, weights: Sequence[Weight]) -> None:
        """Log an update: ``rewire/moved``, and ``moved``, ``overlap`` and ``mean_fan_in`` of each weight."""
        if not trainer.loggers:
            return
        metrics, fan_ins = {"rewire/moved": report.moved}, {}
        for weight in weights:
            name, mask = weight.name, mask_of_neurons(weight)
            first, now = _unpacked(self._first[name], mask), mask.cpu()
            fan_ins[name] = now.flatten(1).sum(1)
            metrics[f"rewire/{name}/moved"] = report.grown[name] / max(report.held[name], 1)
            metrics[f"rewire/{name}/overlap"] = float((first & now).sum() / first.sum().clamp(min=1))
            metrics[f"rewire/{name}/mean_fan_in"] = float(fan_ins[name].float().mean())
            self._keep(name, mask, trainer.global_step)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        for board in _boards(trainer):
            for name, fan_in in fan_ins.items():
                board.add_histogram(f"rewire/{name}/fan_in", fan_in, trainer.global_step)

    def draw(self, trainer: pl.Trainer) -> None:
        """Send a figure of each mask over time."""
        boards = _boards(trainer) if trainer.is_global_zero else []
        if not boards:
            return
        # Matplotlib takes a second to import.
        from fpe_lightning.interference.mask_history import mask_history_figure

        for name, corners in self._corners.items():
            if len(corners) > 1:
                figure = mask_history_figure(torch.stack(corners), self._steps[name], name)
                for board in boards:
                    board.add_figure(f"rewire/{name}/mask", figure, trainer.global_step, close=False)

    def _keep(self, name: str, mask: Tensor, step: int) -> None:
        self._corners[name].append(mask[:NEURONS, :INPUTS].flatten(2).any(2).cpu() if mask.dim() > 2 else _corner(mask))
        self._steps[name].append(step)

    def state_dict(self) -> dict[str, Any]:
        """First masks as bits, and the corners."""
        if not self._first:
            return {}
        return {"first": dict(self._first), "corners": self._corners, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved log was."""
        self._first = dict(state.get("first", {}))
        self._corners = {name: list(each) for name, each in state.get("corners", {}).items()}
        self._steps = {name: list(each) for name, each in state.get("steps", {}).items()}


def mask_of_neurons(weight: Weight) -> Tensor:
    """The mask of the dense weight, ``(neurons, inputs, ...)``, for layers that store inputs first too."""
    if weight.key == "weight" and has_weight(weight.module):
        return LayerState.of(weight.module).mask
    return weight.held


def _corner(mask: Tensor) -> Tensor:
    return mask[:NEURONS, :INPUTS].cpu().clone()


def _packed(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    flat = np.unpackbits(bits.numpy(), count=like.numel()).astype(bool)
    return torch.from_numpy(flat).view(like.shape)


def _boards(trainer: pl.Trainer) -> list[Any]:
    return [logger.experiment for logger in instances(trainer.loggers, "loggers", "TensorBoardLogger")]
