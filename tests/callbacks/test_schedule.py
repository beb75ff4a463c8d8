"""When a split happens, and what is said where that cannot be."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, SaturationTrigger
from fpe_lightning.callbacks.schedule import Schedule


class Moments(pl.Callback):
    """Notes when splits happen: epoch, optimizer step, batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.batch = -1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch_idx

    def on_before_expansion(self, trainer: pl.Trainer, pl_module: Any, sites: Any) -> None:
        self.seen.append((trainer.current_epoch, trainer.global_step, self.batch))


def moments(callback: ExpansionCallback, **options: Any) -> list[tuple[int, int, int]]:
    noted = Moments()
    trainer(noted, callback, **options).fit(Plain(), loader())
    return noted.seen


@pytest.mark.parametrize(
    ("when", "options", "expected"),
    [
        ({"epoch": 0}, {}, [(0, 1, 1)]),
        ({"epoch": 2}, {}, [(2, 12, 0)]),
        ({"epoch": [1, 3]}, {}, [(1, 6, 0), (3, 18, 0)]),
        ({"step": 0}, {"max_steps": 3}, [(0, 1, 1)]),
        ({"step": (3, 7)}, {"max_steps": 9}, [(0, 3, 3), (1, 7, 1)]),
        ({"fraction": 0.5}, {}, [(2, 12, 0)]),
        ({"fraction": [0.0, 0.1]}, {"max_epochs": 2}, [(0, 1, 1), (0, 2, 2)]),
        ({"epoch": 1}, {"accumulate_grad_batches": 2}, [(1, 3, 0)]),
        ({"step": 2}, {"accumulate_grad_batches": 2}, [(0, 2, 4)]),
        ({"fraction": 0.5}, {"accumulate_grad_batches": 4, "max_epochs": 2}, [(1, 2, 0)]),
        ({"epoch": 1}, {"limit_train_batches": 2}, [(1, 2, 0)]),
        ({"epoch": 1}, {"fast_dev_run": True}, []),
        ({"step": 50}, {"fast_dev_run": True}, []),
    ],
)
def test_splits_happen_when_they_are_due(when: dict[str, Any], options: dict[str, Any], expected: list) -> None:
    assert moments(ExpansionCallback(fpe.Expansion(alpha=2, prune="incoming"), **when), **options) == expected


class Forward(Plain):
    """A module that says what it does with a batch's inputs."""

    def forward(self, x: Any) -> Any:
        return self.net(x)


@pytest.mark.parametrize("known_by", ["forward", "sanity check", "example_input_array", "example_inputs"])
def test_a_split_before_the_first_batch_is_on_time_where_inputs_are_known(known_by: str) -> None:
    module = Plain() if known_by == "sanity check" else Forward()
    example = torch.zeros(2, 48)
    if known_by == "example_input_array":
        module.example_input_array = example
    noted = Moments()
    callback = ExpansionCallback(epoch=0, example_inputs=example if known_by == "example_inputs" else None)
    run = trainer(noted, callback, max_epochs=1, num_sanity_val_steps=1 if known_by == "sanity check" else 0)
    run.fit(module, loader(), loader())
    assert noted.seen == [(0, 0, 0)]


class Always:
    """A trigger of ones own."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def should_expand(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        self.asked.append(trainer.current_epoch)
        return trainer.current_epoch > 0


def test_a_trigger_is_asked_at_the_end_of_each_epoch_until_all_splits_are_done() -> None:
    trigger = Always()
    seen = moments(ExpansionCallback(fpe.Expansion(prune="incoming"), trigger=trigger, max_splits=2), max_epochs=5)
    assert seen == [(2, 12, 0), (3, 18, 0)]
    assert trigger.asked == [0, 1, 2]


class Flat(Plain):
    """A metric that stops improving after the second epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", float(min(self.current_epoch, 1)))


def test_saturation_waits_for_its_patience() -> None:
    noted = Moments()
    run = trainer(noted, ExpansionCallback(trigger=SaturationTrigger("val/accuracy", patience=2)), max_epochs=6)
    run.fit(Flat(), loader(), loader())
    assert noted.seen == [(4, 24, 0)]  # epochs 0 and 1 improve, 2 and 3 do not


def test_saturation_takes_min_and_delta() -> None:
    trigger = SaturationTrigger("loss", mode="min", patience=1, min_delta=0.1)
    assert [trigger.saturated(value) for value in (1.0, 0.95, 0.8)] == [False, True, False]
    resumed = SaturationTrigger("loss", mode="min", patience=1, min_delta=0.1)
    resumed.load_state_dict(trigger.state_dict())
    assert resumed.saturated(0.75)


def test_a_metric_that_nobody_logs_is_named() -> None:
    callback = ExpansionCallback(trigger=SaturationTrigger("val/f1"))
    with pytest.raises(MisconfigurationException, match=r"monitors 'val/f1', which is not logged.*: loss, val_loss"):
        trainer(callback).fit(Plain(), loader(), loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of them; found none"),
        ({"epoch": 1, "step": 5}, "exactly one of them; found `epoch` and `step`"),
        ({"epoch": 1, "fraction": 0.5}, "found `epoch` and `fraction`"),
        ({"step": 1, "trigger": Always()}, "found `step` and `trigger`"),
        ({"epoch": -1}, "`epoch` takes integers of at least 0.*found -1"),
        ({"epoch": 1.5}, "`epoch` takes integers of at least 0.*found 1.5"),
        ({"epoch": True}, "`epoch` takes integers of at least 0.*found True"),
        ({"epoch": "2"}, "`epoch` takes integers of at least 0.*found '2'"),
        ({"epoch": []}, r"`epoch` takes integers .* found \[\]"),
        ({"epoch": [2, 1]}, r"in rising order; found \[2, 1\]"),
        ({"step": [2, 2]}, r"in rising order; found \[2, 2\]"),
        ({"fraction": 1.0}, r"`fraction` takes numbers in \[0, 1\).*found 1.0"),
        ({"fraction": float("nan")}, r"`fraction` takes numbers in \[0, 1\).*found nan"),
        ({"epoch": 1, "max_splits": 0}, "`max_splits` has to be an integer of at least 1, found 0"),
        ({"epoch": 1, "max_splits": 2}, "`max_splits` is for a `trigger`; `epoch` lists all splits"),
        ({"trigger": object()}, "`trigger` needs a method `should_expand.*found object"),
        ({"trigger": Always}, "`trigger` needs a method `should_expand.*found the class Always"),
        ({"epoch": 1, "alpha": 1}, "integer of at least 2; found 1"),
        ({"epoch": 1, "seed": 0.5}, "`seed` is an integer, found 0.5"),
        ({"epoch": 1, "expansion": {}}, "mapping from sites to expansions is empty; name at least one site"),
        ({"epoch": 1, "expansion": 2}, r"`expansion` takes an expansion such as `fpe.Paper\(alpha=4\)`.*; found 2"),
        ({"epoch": 1, "expansion": {"net.0": 2}}, "`expansion` takes an expansion .*; found 2"),
        ({"epoch": 1, "expansion": fpe.Paper(), "seed": 3}, "`seed=3` is short for an expansion, and `expansion` is"),
    ],
)
def test_bad_arguments_are_refused_in_the_constructor(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        ExpansionCallback(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "up"}, '`mode` has to be "min" or "max", found \'up\''),
        ({"patience": 0}, "`patience` takes integers of at least 1"),
        ({"min_delta": -1.0}, "`min_delta` is a number of at least 0, found -1.0"),
    ],
)
def test_bad_triggers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        SaturationTrigger("x", **arguments)


@pytest.mark.parametrize(
    ("when", "options", "message"),
    [
        ({"epoch": 4}, {}, "`epoch=4` is never reached: the run ends at max_epochs=4"),
        ({"epoch": [1, 9]}, {}, "`epoch=9` is never reached"),
        ({"step": 3}, {"max_steps": 3}, "`step=3` is never reached: the run ends at max_steps=3"),
        ({"step": 24}, {}, "`step=24` is never reached: the run ends after 24 optimizer steps"),
        ({"epoch": 2}, {"max_steps": 12}, "`epoch=2` is never reached: the run ends after 12 optimizer steps"),
        ({"fraction": 0.5}, {"max_epochs": -1}, "`fraction` needs a run with an end: set `max_epochs` or `max_steps`"),
    ],
)
def test_a_moment_that_never_comes_is_refused_at_the_start(when: dict, options: dict, message: str) -> None:
    run, module = trainer(ExpansionCallback(**when), **options), Plain()
    with pytest.raises(MisconfigurationException, match=message):
        run.fit(module, loader())
    assert run.global_step == 0


def test_other_stages_ask_for_no_schedule() -> None:
    run = trainer(ExpansionCallback(epoch=99))
    run.validate(Plain(), loader(), verbose=False)
    assert run.predict(Plain(), loader()) is not None


def test_moments_may_come_from_a_config_as_lists() -> None:
    assert Schedule(epoch=[1, 2]).moments == [1, 2]
    assert Schedule(fraction=0).moments == [0]
