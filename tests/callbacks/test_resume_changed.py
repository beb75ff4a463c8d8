"""A run resumes with other arguments: what was split counts, and more is split only where the new schedule asks."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from boring import Plain, resumable, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, SaturationTrigger


class Moments(pl.Callback):
    """Notes the epochs of splits."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: Any, report: Any) -> None:
        self.epochs.append(trainer.current_epoch)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs, split at epoch 1."""
    directory = tmp_path_factory.mktemp("run")
    saving = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, every_n_train_steps=3)
    trainer(ExpansionCallback(epoch=1), saving, directory=directory, max_epochs=3).fit(Plain(), resumable())
    return directory


def resume(path: Path, *callbacks: ExpansionCallback, epochs: int = 7, caplog: Any = None) -> tuple[list[int], int]:
    moments, module = Moments(), Plain()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*add the following callbacks.*Expansion.*")
        trainer(*callbacks, moments, max_epochs=epochs).fit(module, resumable(), ckpt_path=path)
    return moments.epochs, module.net[0].out_features


CASES: dict[str, tuple[dict[str, Any], list[int], str]] = {
    "the same": ({"epoch": 1}, [], ""),
    "one split more": (
        {"epoch": [1, 5]},
        [5],
        r"`epoch=\[1, 5\]`, was `epoch=1`\), after it was split once: .*`epoch=5`",
    ),
    "one that was due before": ({"epoch": [1, 2]}, [3], "the next split is due at `epoch=2`"),
    "one that is due now": ({"epoch": [1, 3]}, [3], "the next split is due at `epoch=3`"),
    "a later one": ({"epoch": 5}, [5], "`epoch=5`, was `epoch=1`.* the next split is due at `epoch=5`"),
    "an earlier one": ({"epoch": 2}, [], "no split is left"),
    "by steps": ({"step": [6, 24]}, [4], "the next split is due at `step=24`"),
    "another seed": ({"epoch": 1, "seed": 3}, [], r"seed=3.*, was .*seed=0.*no split is left"),
    "another alpha": ({"epoch": 1, "alpha": 4}, [], "no split is left"),
    "other sites": ({"epoch": 1, "sites": ["net.0"]}, [], r"`sites=\['net.0'\]`, was `sites=None`"),
    "a trigger": ({"trigger": SaturationTrigger("loss", "min", 1, 9.0), "max_splits": 1}, [], "no split is left"),
}


@pytest.mark.parametrize("name", CASES)
def test_other_arguments(name: str, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    options, epochs, line = CASES[name]
    with caplog.at_level(logging.INFO):
        found = resume(saved / "step=18.ckpt", ExpansionCallback(**options), caplog=caplog)
    assert found == (epochs, 12 * 2 ** len(epochs))
    lines = [
        each.getMessage() for each in caplog.records if "The run resumes with other arguments" in each.getMessage()
    ]
    assert len(lines) == bool(line)
    assert not lines or __import__("re").search(line, lines[0]), lines


@pytest.mark.parametrize(("step", "options", "epochs"), [(3, {"epoch": 5}, [5]), (9, {"epoch": 5}, [5])])
def test_from_before_the_split_and_from_the_middle_of_an_epoch(
    step: int, options: dict[str, Any], epochs: list[int], saved: Path
) -> None:
    found = resume(saved / f"step={step}.ckpt", ExpansionCallback(**options))
    assert found == (epochs, 12 if step == 3 else 24)


def test_several_callbacks_find_their_own_states(tmp_path: Path) -> None:
    def fit(*callbacks: ExpansionCallback, ckpt_path: Path | None = None) -> list[ExpansionCallback]:
        saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        run = trainer(*callbacks, saving, directory=tmp_path, max_epochs=3 if ckpt_path is None else 5)
        run.fit(Plain(), resumable(), ckpt_path=ckpt_path)
        return list(callbacks)

    def first() -> ExpansionCallback:
        return ExpansionCallback(epoch=1)

    def second() -> ExpansionCallback:
        return ExpansionCallback(epoch=2, alpha=3)

    fit(first(), second())
    last = tmp_path / "epoch=2.ckpt"
    # In another order, one of them alone, one changed, and one more.
    assert [
        each.reports for each in fit(ExpansionCallback(epoch=2, alpha=3), ExpansionCallback(epoch=1), ckpt_path=last)
    ] == [[], []]
    (alone,) = fit(ExpansionCallback(epoch=2, alpha=3), ckpt_path=last)
    assert alone.reports == []
    one, other = fit(first(), ExpansionCallback(epoch=4), ckpt_path=last)
    assert (len(one.reports), len(other.reports)) == (0, 1)
    *_, more = fit(
        *[ExpansionCallback(epoch=1), ExpansionCallback(epoch=2, alpha=3)], ExpansionCallback(epoch=4), ckpt_path=last
    )
    assert len(more.reports) == 1


def test_weights_that_another_tool_split(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A widened file has no state of a callback: its record says that it was split."""
    run = trainer(ModelCheckpoint(tmp_path, filename="{epoch}"), directory=tmp_path, max_epochs=3)
    run.fit(Plain(), resumable())
    fpe.expand_checkpoint(
        tmp_path / "epoch=2.ckpt", tmp_path / "wide.ckpt", Plain(), example_batch=next(iter(resumable()))
    )
    with caplog.at_level(logging.INFO):
        assert resume(tmp_path / "wide.ckpt", ExpansionCallback(epoch=[1, 5])) == ([5], 24)
    assert "The module was split once before this ExpansionCallback saw it: the next split is due at" in caplog.text


def test_a_second_fit_with_a_new_callback_splits_once_more_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    module = Plain()
    trainer(ExpansionCallback(epoch=1), max_epochs=2).fit(module, resumable())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        trainer(ExpansionCallback(epoch=1), max_epochs=2).fit(module, resumable())
    assert module.net[0].out_features == 24
    assert caplog.text.count("The module was split once before this ExpansionCallback saw it") == 1


def test_going_on_with_the_same_trainer_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    module, run = Plain(), trainer(ExpansionCallback(epoch=1), max_epochs=2)
    with caplog.at_level(logging.INFO):
        run.fit(module, resumable())
        run.fit_loop.max_epochs = 4
        run.fit(module, resumable())
    assert module.net[0].out_features == 12
    assert "before this ExpansionCallback saw it" not in caplog.text
