"""InterferenceMonitor: what it logs, when, and to whom."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from interference_support import BATCHES, Recorder, Tiny, conv_network, fit, splits
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, InterferenceMonitor
from fpe_lightning.data import BooleanDataModule
from fpe_lightning.interference import (
    LayerState,
    clause_collisions,
    feature_capacity,
    mean_absolute_cosine_similarity,
    mean_cosine_similarity,
)
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP

KEYS = (
    "feature_capacity",
    "mean_cosine_similarity",
    "mean_absolute_cosine_similarity",
    "width",
    "mean_fan_in",
    "nonzeros",
)


def board(path: Path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_are_logged_at_the_start_and_after_every_nth_epoch(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    model = fit([InterferenceMonitor(every_n_epochs=2, sites="net.0")], epochs=4, logger=logger)
    events = board(tmp_path)
    for key in KEYS:
        assert [step for step, _ in scalars(events, f"interference/net.0/{key}")] == [0, 2 * BATCHES, 4 * BATCHES]
    last = {key: scalars(events, f"interference/net.0/{key}")[-1][1] for key in KEYS}
    weight = model.net[0].weight.detach()
    expected = {
        "feature_capacity": feature_capacity(weight).mean().item(),
        "mean_cosine_similarity": mean_cosine_similarity(weight).item(),
        "mean_absolute_cosine_similarity": mean_absolute_cosine_similarity(weight).item(),
        "width": 4.0,
        "mean_fan_in": 16.0,
        "nonzeros": 64.0,
    }
    assert last == pytest.approx(expected)
    histograms = events.Histograms("interference/net.0/feature_capacities")
    assert [event.step for event in histograms] == [0, 2 * BATCHES, 4 * BATCHES]
    assert histograms[-1].histogram_value.num == 16


def test_a_split_is_measured_on_both_sides_and_drawn_once(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    expansion = splits("net.0")
    fit([expansion, InterferenceMonitor(sites="net.*")], logger=logger)
    events = board(tmp_path)
    widths = [(0, 4.0), (2, 4.0), (2, 4.0), (2, 8.0), (4, 8.0), (6, 8.0)]
    assert scalars(events, "expansion/width/net.0") == widths
    assert scalars(events, "interference/net.0/width") == widths
    (site,) = expansion.reports[0].sites
    fan_ins = [value for _, value in scalars(events, "interference/net.0/mean_fan_in")]
    assert fan_ins == pytest.approx([site.fan_in_before] * 3 + [site.fan_in_after] * 3)
    nonzeros = [value for _, value in scalars(events, "interference/net.0/nonzeros")]
    assert nonzeros == pytest.approx([64.0] * 3 + [8 * site.fan_in_after] * 3)
    assert [value for _, value in scalars(events, "expansion/width/net.2")] == [6.0] * 4
    kinds = ("mask", "gram", "weights", "capacities")
    assert set(events.Tags()["images"]) == {f"interference/net.0/{kind}" for kind in kinds}
    for kind in kinds:
        (image,) = events.Images(f"interference/net.0/{kind}")
        assert image.step == 2
        assert image.width > 300


def test_convolutions_get_their_kernels_drawn(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    callbacks = [splits("net.1"), InterferenceMonitor()]
    fit(callbacks, Tiny(conv_network()), logger=logger, epochs=2)
    assert "interference/net.1/kernels" in board(tmp_path).Tags()["images"]


def test_figures_can_be_turned_off(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit([splits("net.0"), InterferenceMonitor(figures=False)], logger=logger)
    assert board(tmp_path).Tags()["images"] == []
    assert "interference/net.0/feature_capacities" in board(tmp_path).Tags()["histograms"]


def test_without_names_it_starts_at_the_first_split():
    recorder = Recorder()
    fit([splits("net.0"), InterferenceMonitor()], logger=recorder)
    assert [step for step, _ in recorder.monitored()] == [2, 2, 4, 6]
    assert all(
        key.split("/")[-2] == "net.0" or key.endswith("/net.0") for _, row in recorder.monitored() for key in row
    )


def test_named_layers_alone_are_drawn(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    expansion = splits()
    fit([expansion, InterferenceMonitor(sites=["net.2"])], logger=logger)
    assert [site.name for site in expansion.reports[0].sites] == ["net.0", "net.2"]
    # The inputs of net.2 are the neurons of net.0: there are more of them after the split.
    assert {tag.split("/")[1] for tag in board(tmp_path).Tags()["images"]} == {"net.2"}


def test_several_splits_are_each_drawn(tmp_path: Path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit([splits("net.0", epoch=[1, 2]), InterferenceMonitor()], logger=logger)
    events = board(tmp_path)
    assert [image.step for image in events.Images("interference/net.0/gram")] == [2, 4]
    assert [value for _, value in scalars(events, "expansion/width/net.0")] == [4.0, 8.0, 8.0, 8.0, 16.0, 16.0]


def test_csv_gets_scalars(tmp_path: Path):
    fit([splits("net.0"), InterferenceMonitor()], logger=CSVLogger(tmp_path, name="", version=""))
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["interference/net.0/feature_capacity"]]
    assert [(int(row["step"]), float(row["expansion/width/net.0"])) for row in rows] == [(2, 4), (2, 8), (4, 8), (6, 8)]


def test_several_loggers_all_get_the_scalars(tmp_path: Path):
    recorder = Recorder()
    loggers = [
        CSVLogger(tmp_path / "csv", name="", version=""),
        TensorBoardLogger(tmp_path, name="b", version=""),
        recorder,
    ]
    fit([splits("net.0"), InterferenceMonitor()], logger=loggers)
    capacity = [row["interference/net.0/feature_capacity"] for _, row in recorder.monitored()]
    events = board(tmp_path / "b")
    assert [value for _, value in scalars(events, "interference/net.0/feature_capacity")] == pytest.approx(capacity)
    assert "interference/net.0/mask" in events.Tags()["images"]
    assert (tmp_path / "csv" / "metrics.csv").exists()


@pytest.mark.parametrize("arguments", [{"logger": False}, {"fast_dev_run": True}])
def test_runs_without_a_logger_and_in_a_fast_run(arguments: dict[str, Any], tmp_path: Path):
    fit([splits("net.0", epoch=0), InterferenceMonitor()], default_root_dir=tmp_path, epochs=1, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_other_processes_log_nothing(monkeypatch: pytest.MonkeyPatch):
    recorder = Recorder()
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    fit([splits("net.0"), InterferenceMonitor(sites="net.0")], logger=recorder)
    assert recorder.monitored() == []


def test_testing_logs_nothing_and_needs_no_matching_site():
    recorder = Recorder()
    trainer = Trainer(
        logger=recorder,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        callbacks=[InterferenceMonitor(sites="absent")],
    )
    trainer.test(Tiny(), verbose=False)
    assert recorder.monitored() == []


def test_training_is_the_same_with_and_without_it():
    state = torch.get_rng_state()
    watched = fit([splits("net.0"), InterferenceMonitor(sites="*")], logger=Recorder())
    alone = fit([splits("net.0")], logger=Recorder())
    for mine, other in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    torch.set_rng_state(state)
    InterferenceMonitor()._measure(Trainer(logger=Recorder(), accelerator="cpu", devices=1), watched, ["net.0"])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_resumed_after_the_split_is_watched_on(tmp_path: Path):
    class Save(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "wide.ckpt")

    fit([splits("net.0"), InterferenceMonitor(), Save()], epochs=2, logger=False)
    recorder = Recorder()
    fit([splits("net.0"), InterferenceMonitor()], epochs=3, logger=recorder, ckpt_path=tmp_path / "wide.ckpt")
    assert [(step, row["expansion/width/net.0"]) for step, row in recorder.monitored()] == [(6, 8.0)]


def test_a_diverged_run_is_logged_and_not_stopped(tmp_path: Path):
    class Diverge(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            pl_module.net[0].weight.data[0, 0] = float("nan")

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit([Diverge(), InterferenceMonitor(sites="net.0")], logger=logger)
    values = [value for _, value in scalars(board(tmp_path), "interference/net.0/feature_capacity")]
    assert values[0] > 0
    assert all(value != value for value in values[1:])


def test_clauses_that_the_data_knows_are_followed_in_the_layer_that_reads_them():
    recorder = Recorder()
    data = BooleanDataModule(clauses=4, literals=2, inputs=8, train_size=32, val_size=8, test_size=8, batch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(MLP(8, [8, 8], 1), task="binary")
    callbacks = [
        ExpansionCallback(fpe.Expansion(partition="clause"), epoch=1, sites="*layers.0"),
        InterferenceMonitor(sites="*layers.*"),
    ]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(max_epochs=2, logger=recorder, callbacks=callbacks, accelerator="cpu", devices=1, **quiet).fit(model, data)
    found = {key for _, row in recorder.monitored() for key in row if "clause" in key}
    assert found == {f"interference/network.layers.0/clause_{kind}" for kind in ("collisions", "coverage")}
    key = "interference/network.layers.0/clause_collisions"
    collisions = [row[key] for _, row in recorder.monitored() if key in row]
    state = LayerState.of(model.network.layers[0])
    expected = clause_collisions(state.mask, data.clauses, state.parents).item()
    assert collisions[0] == 1.0  # a dense neuron holds every clause
    assert collisions[-1] == expected < 1.0


def test_data_that_know_no_clauses_are_logged_without():
    recorder = Recorder()
    fit([splits("net.0"), InterferenceMonitor()], logger=recorder)
    assert not [key for _, row in recorder.monitored() for key in row if "clause" in key]
