"""Measure the statistics of batch norms anew after each split."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from fpe_lightning.expansion.report import ExpansionReport
from fpe_lightning.expansion.statistics import average_statistics, restart_statistics, resume_momenta


class BatchNormReestimation(pl.Callback):
    """Begins the running statistics of batch and instance norms anew at each split of an ``ExpansionCallback``.

    Without it children keep the statistics of their parent until the moving average has followed. With it, the batches
    after the split are averaged plainly until a batch weighs as little as the layer's momentum says (ten batches at
    the default of 0.1), and the moving average goes on from there. It takes no pass of its own over the data: training
    computes these statistics anyway. Layers in eval mode keep what they have. A resumed run goes on in the middle of
    it, bit by bit.

    Example:
        >>> from fpe_lightning.callbacks import ExpansionCallback
        >>> callbacks = [ExpansionCallback(alpha=2, epoch=3), BatchNormReestimation()]
    """

    def __init__(self) -> None:
        super().__init__()
        self._momenta: dict[str, float] = {}

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Begin anew; a split while the layers still average from the last one begins again."""
        self._momenta = {**self._momenta, **restart_statistics(pl_module)}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        average_statistics(pl_module, self._momenta)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._momenta:
            self._momenta = resume_momenta(pl_module, self._momenta)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        resume_momenta(pl_module, self._momenta, at_once=True)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        resume_momenta(pl_module, self._momenta, at_once=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._momenta = state_dict["momenta"]
