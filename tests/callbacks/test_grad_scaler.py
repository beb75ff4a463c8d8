"""Half precision with a GradScaler: its state goes on through a split, a step that it leaves out, and a resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from boring import Plain, equal, outcome, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, optim

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks


class Overflowing(Plain):
    """The gradients of the step before the split are infinite, so that a GradScaler leaves it out."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (float("inf") if self.global_step == 2 else 1.0)


CASES: list[tuple[Any, dict[str, Any]]] = [
    (partial(optim.SGD, lr=0.01, momentum=0.9), {"gradient_clip_val": 1.0}),
    (partial(optim.AdamW, lr=0.01, foreach=True), {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}),
    (partial(optim.AdamW, lr=0.01, fused=True), {"accumulate_grad_batches": 2}),  # unscales by itself, so no clipping
]


@pytest.mark.parametrize(("optimizer", "options"), CASES, ids=["SGD", "AdamW foreach", "AdamW fused"])
def test_grad_scaler_state_goes_on(optimizer: Any, options: dict[str, Any], tmp_path: Path) -> None:
    def run(step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=2)
        callbacks = [ExpansionCallback(step=3), saving]
        fitted = trainer(*callbacks, directory=tmp_path, max_steps=8, plugins=[plugin], **options)
        module = Overflowing(optimizer=optimizer)
        fitted.fit(module, resumable(), ckpt_path=tmp_path / f"step={step}.ckpt" if step else None)
        check_masks(module)
        assert module.net[0].out_features == 12
        return outcome(fitted), scaler.state_dict()

    weights, scale = run()
    assert scale["scale"] == 16  # twice as much after steps 2, 5 and 7, half after step 3
    for step in (2, 4, 6):
        again = run(step)
        assert equal(again[0], weights), f"resumed after step {step}"
        assert again[1] == scale
