"""Runs whose layout the clock chose are resumed bit by bit, whatever the clock says then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from boring import Plain, equal, outcome, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import GroupedLinear, autotune
from fpe_lightning.sparse.choices import ChoiceFile


@pytest.fixture(autouse=True)
def forgotten() -> None:
    ChoiceFile().path.unlink(missing_ok=True)


def clock(monkeypatch: pytest.MonkeyPatch, fastest: str) -> list[Any]:
    calls: list[Any] = []

    def measured(layers: Mapping[str, nn.Module], reads: tuple[int, ...], training: bool) -> dict[str, float]:
        calls.append((reads, training, torch.is_autocast_enabled("cpu")))
        return {name: 1.0 if name == fastest else 2.0 for name in layers}

    monkeypatch.setattr(autotune, "measure", measured)
    return calls


def callback() -> ExpansionCallback:
    return ExpansionCallback(fpe.Expansion(partition="shared", prune="columns", layout="auto"), step=3)


@pytest.mark.parametrize(("then", "now"), [("grouped", "masked"), ("masked", "grouped")])
def test_a_resumed_run_keeps_the_layout_that_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, now: str
) -> None:
    clock(monkeypatch, then)
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    run = trainer(callback(), saving, directory=tmp_path, max_epochs=2)
    run.fit(Plain(), resumable())
    expected = outcome(run)
    assert isinstance(run.lightning_module.net[0], GroupedLinear) == (then == "grouped")
    # Before the split the file of choices decides; after it the checkpoint does, with no file and another clock.
    for step in (2, 5, 8):
        if step > 3:
            ChoiceFile().path.unlink(missing_ok=True)
        calls = clock(monkeypatch, now)
        again = trainer(callback(), max_epochs=2)
        again.fit(Plain(), resumable(), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert calls == []
        assert equal(outcome(again), expected), f"resumed after step {step}"


def test_layouts_are_timed_on_the_batch_and_in_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = clock(monkeypatch, "grouped")
    run = trainer(callback(), max_epochs=2, precision="bf16-mixed")
    run.fit(Plain(), resumable(batch_size=8))
    assert ((8, 48), True, True) in calls
    assert isinstance(run.lightning_module.net[0], GroupedLinear)


def test_the_default_is_a_fixed_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = clock(monkeypatch, "grouped")
    run = trainer(ExpansionCallback(fpe.Expansion(partition="shared", prune="columns"), step=3), max_epochs=1)
    run.fit(Plain(), resumable())
    assert calls == []
