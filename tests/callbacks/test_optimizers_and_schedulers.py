"""Optimizers and learning rate schedulers go through splits, and resume to the same end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from boring import Plain, Run, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import optim
from torch.optim import lr_scheduler as lrs
from torch.optim import swa_utils

import fpe_lightning as fpe
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


def mostly_slow(names: Iterable[str], *fast: str) -> list[Any]:
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", mostly_slow(OPTIMIZERS, "SGD momentum", "AdamW fused", "Adafactor"))
def test_resume_with_every_optimizer(name: str, tmp_path: Path) -> None:
    Run(lambda: Plain(optimizer=OPTIMIZERS[name]), tmp_path).resumes(4)


def test_every_optimizer_of_torch_is_tried() -> None:
    tried = {made.func for made in OPTIMIZERS.values()}  # type: ignore[attr-defined]
    refused = {optim.LBFGS, optim.Muon}
    sparse = {optim.SparseAdam}  # for gradients of embeddings, which have no site
    every = {each for each in vars(optim).values() if isinstance(each, type) and issubclass(each, optim.Optimizer)}
    assert every - {optim.Optimizer} == tried | refused | sparse


def test_groups_keep_their_parameters_and_options(tmp_path: Path) -> None:
    def groups(parameters: Iterable[Any]) -> optim.Optimizer:
        first, first_bias, *rest = parameters
        return optim.AdamW(
            [
                {"params": [first_bias, *rest[2:]], "weight_decay": 0.0, "lr": 0.05, "name": "output"},
                {"params": [first], "betas": (0.5, 0.9), "name": "input"},
                {"params": rest[:2], "amsgrad": True},
            ],
            lr=0.01,
        )

    def schedule(optimizer: optim.Optimizer) -> Any:
        return {"scheduler": lrs.OneCycleLR(optimizer, [0.1, 0.05, 0.02], total_steps=12), "interval": "step"}

    run = Run(lambda: Plain(optimizer=groups, scheduler=schedule), tmp_path)
    run.resumes(2, 4, 6)
    found = run()
    names = [["net.0.bias", "net.3.weight", "net.3.bias"], ["net.0.weight"], ["net.1.weight", "net.1.bias"]]
    assert found["held"] == names
    (state,) = found["optimizers"]
    assert [group.get("name") for group in state["param_groups"]] == ["output", "input", None]
    assert [group["weight_decay"] for group in state["param_groups"]] == [0.0, 0.01, 0.01]
    # Tensors of moments: the third group alone keeps their maximum.
    assert ["max_exp_avg_sq" in state["state"][index] for index in range(6)] == [False] * 4 + [True] * 2


class Preconditioned(optim.SGD):
    """An optimizer from elsewhere, with a momentum of the weight's shape and one matrix for each of its axes."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("axes", [torch.eye(size) for size in parameter.shape])
        return result


def test_an_unknown_optimizer_is_refused_unless_its_state_follows_or_is_reset() -> None:
    def fit(expansion: fpe.ByShape) -> Any:
        run = trainer(ExpansionCallback(expansion, step=3), max_epochs=1)
        run.fit(Plain(optimizer=partial(Preconditioned, lr=0.01, momentum=0.9)), resumable())
        return run

    with pytest.raises(
        MisconfigurationException, match=r"Preconditioned state `axes` of `net.0.weight` has shape \(6, 6\)"
    ):
        fit(fpe.ByShape())
    run = fit(fpe.ByShape(optimizer_state="reset"))
    weight = run.lightning_module.net[0].weight
    assert [len(axis) for axis in run.optimizers[0].state[weight]["axes"]] == [12, 48]


@pytest.mark.parametrize("name", ["SGD momentum", "AdamW foreach"])
def test_an_unknown_subclass_whose_state_has_the_shape_of_the_weights_resumes(name: str, tmp_path: Path) -> None:
    made = OPTIMIZERS[name]
    unknown = type("Unknown", (made.func,), {})  # type: ignore[attr-defined]
    Run(lambda: Plain(optimizer=partial(unknown, **made.keywords)), tmp_path).resumes(4)  # type: ignore[attr-defined]


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "step": lambda o: lrs.StepLR(o, 1, 0.5),
    "several steps": lambda o: lrs.MultiStepLR(o, [1], 0.5),
    "constant": lambda o: lrs.ConstantLR(o, 0.5, 1),
    "linear": lambda o: lrs.LinearLR(o, 0.5, 1.0, 2),
    "polynomial": lambda o: lrs.PolynomialLR(o, 4, 2.0),
    "multiplicative": lambda o: lrs.MultiplicativeLR(o, lambda epoch: 0.9),
    "exponential": lambda o: lrs.ExponentialLR(o, 0.9),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 4),
    "restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 1),
    "lambda": lambda o: lrs.LambdaLR(o, lambda epoch: 0.5**epoch),
    "sequential": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o), lrs.ExponentialLR(o, 0.9)], [1]),
    "chained": lambda o: lrs.ChainedScheduler([lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)]),
    "one cycle, each step": lambda o: {"scheduler": lrs.OneCycleLR(o, 0.1, total_steps=12), "interval": "step"},
    "cyclic": lambda o: {"scheduler": lrs.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False), "interval": "step"},
    "averaging": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=2),
    "plateau": lambda o: {"scheduler": lrs.ReduceLROnPlateau(o, patience=0), "monitor": "loss"},
}


def test_every_scheduler_of_torch_is_tried() -> None:
    optimizer = optim.SGD(Plain().parameters(), lr=0.01, momentum=0.9)
    made = [make(optimizer) for make in SCHEDULERS.values()]
    tried = {type(each["scheduler"] if isinstance(each, dict) else each) for each in made}
    every = {each for each in vars(lrs).values() if isinstance(each, type) and issubclass(each, lrs.LRScheduler)}
    assert {each for each in every if each is not lrs.LRScheduler and not each.__name__.startswith("_")} <= tried


@pytest.mark.parametrize("name", mostly_slow(SCHEDULERS, "sequential", "one cycle, each step"))
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
