"""Let a module and its averages load checkpoints of any structure, while a Trainer runs."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from fpe_lightning.callbacks.averages import averages_of
from fpe_lightning.callbacks.lightnings import Callback
from fpe_lightning.checkpoints.load_hook import restore_structure_on_load, restores_structure_on_load


class StructureOnLoad(Callback):
    """Restores the structure of a module, and of its averages, from whatever weights a Trainer loads into them.

    Weights are loaded before any callback's state, so the structure has to come from the weights themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self._restoring: list[RemovableHandle] = []

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clean_up()
        # Callbacks set up later copy the module together with this hook.
        self._restoring = [restore_structure_on_load(each) for each in (pl_module, *averages_of(trainer, pl_module))]

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Copies that other callbacks made in their `setup` load their states after this.
        known = [each for each in averages_of(trainer, pl_module) if not restores_structure_on_load(each)]
        self._restoring += [restore_structure_on_load(each) for each in known]

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._clean_up()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._clean_up()

    def _clean_up(self) -> None:
        for handle in self._restoring:
            handle.remove()
        self._restoring = []
