"""Optimizers and learning rate schedulers go through splits, and resume to the same end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from boring import Plain, Run, outcome, resumable, trainer
from torch import optim
from torch.optim import lr_scheduler as lrs

from fpe_lightning.callbacks import ExpansionCallback

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.01),
    "SGD momentum": partial(optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "SGD fused": partial(optim.SGD, lr=0.01, momentum=0.9, fused=True),
    "Adam": partial(optim.Adam, lr=0.01, weight_decay=0.1),
    "AdamW foreach": partial(optim.AdamW, lr=0.01, amsgrad=True, foreach=True),
    "AdamW fused": partial(optim.AdamW, lr=0.01, fused=True),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "Adadelta": partial(optim.Adadelta, lr=0.1),
    "Adagrad": partial(optim.Adagrad, lr=0.01),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.01, t0=1),
    "Adafactor": partial(optim.Adafactor, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_with_every_optimizer(name: str, tmp_path: Path) -> None:
    Run(lambda: Plain(optimizer=OPTIMIZERS[name]), tmp_path).resumes(4)


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "step": lambda o: lrs.StepLR(o, 1, 0.5),
    "exponential": lambda o: lrs.ExponentialLR(o, 0.9),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 4),
    "restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 1),
    "lambda": lambda o: lrs.LambdaLR(o, lambda epoch: 0.5**epoch),
    "sequential": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o), lrs.ExponentialLR(o, 0.9)], [1]),
    "chained": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)]),
    "one cycle, each step": lambda o: {"scheduler": lrs.OneCycleLR(o, 0.1, total_steps=12), "interval": "step"},
    "cyclic momentum": lambda o: {"scheduler": lrs.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False), "interval": "step"},
    "plateau": lambda o: {"scheduler": lrs.ReduceLROnPlateau(o, patience=0), "monitor": "loss"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rate_schedulers(name: str, tmp_path: Path) -> None:
    def make() -> Plain:
        return Plain(scheduler=SCHEDULERS[name])

    Run(make, tmp_path).resumes(4)
    plain = trainer(max_epochs=2, max_steps=8)
    plain.fit(make(), resumable())
    split = trainer(ExpansionCallback(step=3), max_epochs=2, max_steps=8)
    split.fit(make(), resumable())
    if name != "plateau":  # which looks at the loss
        assert outcome(plain)["rates"] == outcome(split)["rates"]
