"""TensorBoardReport: splits on the curves, the layout of charts, the table of HParams, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from boring import Plain, equal, loader, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, SaturationTrigger, TensorBoardReport
from fpe_lightning.callbacks.tensorboard_hparams import columns_of
from fpe_lightning.callbacks.tensorboard_report import layout, marker
from fpe_lightning.cli import CLI
from fpe_lightning.interference.curves import curves_figure
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP

BATCHES = 6


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(MLP(48, 6, 3))


def board(path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(path, name="", version="", default_hp_metric=False)


def events(path: Path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def table(path: Path) -> tuple[dict[str, Any], list[str], bool]:
    """Hyper-parameters and names of metrics as TensorBoard reads them, and whether the run is said to have ended."""
    found = events(path).summary_metadata
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG].plugin_data.content)
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert set(values) == {info.name for info in experiment.hparam_infos}
    metrics = [info.name.tag for info in experiment.metric_infos]
    return values, metrics, metadata.SESSION_END_INFO_TAG in found


def fit(path: Path, *callbacks: Any, **options: Any) -> Trainer:
    run = trainer(*callbacks, **{"logger": board(path), "max_epochs": 3, **options})
    run.fit(classifier(), loader(), loader())
    return run


def test_each_split_is_a_line_as_high_as_the_curve_beside_it(tmp_path: Path) -> None:
    fit(tmp_path, ExpansionCallback(epoch=[1, 2]), TensorBoardReport())
    found = events(tmp_path)
    for chart in ("loss", "accuracy"):
        curves = [scalars(found, f"{stage}/{chart}") for stage in ("train", "val")]
        expected = []
        for epoch, step in enumerate((BATCHES, 2 * BATCHES)):
            top = max(curve[epoch][1] for curve in curves)
            expected += marker(step, pytest.approx(top))
        assert scalars(found, f"expansion/split/{chart}") == expected


def test_the_curves_are_drawn_when_training_ends_with_a_point_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}

    def note(curves: dict[str, list[tuple[int, float]]], splits: list[int], label: str) -> Figure:
        drawn[label] = (curves, splits)
        return curves_figure(curves, splits, label)

    monkeypatch.setattr("fpe_lightning.interference.curves.curves_figure", note)
    fit(tmp_path, ExpansionCallback(epoch=1), TensorBoardReport())
    found = events(tmp_path)
    assert {"curves/loss", "curves/accuracy"} <= set(found.Tags()["images"])
    for chart, (curves, splits) in drawn.items():
        assert splits == [BATCHES]
        assert sorted(curves) == [f"train/{chart}", f"val/{chart}"]
        for name, points in curves.items():
            assert [step for step, _ in points] == [BATCHES, 2 * BATCHES, 3 * BATCHES]
            assert [value for _, value in points] == pytest.approx([value for _, value in scalars(found, name)])


def test_a_split_before_anything_is_logged_has_height_one(tmp_path: Path) -> None:
    fit(tmp_path, ExpansionCallback(step=1), TensorBoardReport(charts=["loss"]))
    assert scalars(events(tmp_path), "expansion/split/loss") == [(0, 0.0), (1, 1.0), (2, 0.0)]
    assert "expansion/split/accuracy" not in events(tmp_path).Tags()["scalars"]


def test_charts_of_training_and_of_the_sites_are_laid_out(tmp_path: Path) -> None:
    fit(tmp_path, TensorBoardReport())
    (event,) = events(tmp_path).Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in found.category
    }
    assert charts["training"] == {
        name: [f"(?!test|best|expansion/).*{name}", f"expansion/split/{name}$"] for name in ("loss", "accuracy")
    }
    assert charts["sites"]["width"] == ["expansion/width/"]
    assert not [title for title in charts["sites"] if "clause" in title]
    assert [title for title in layout(["loss"], clauses=True)["sites"] if "clause" in title]


def test_runs_have_the_same_columns_whatever_they_train(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    fit(tmp_path / "dense", best, TensorBoardReport(), enable_checkpointing=True)
    split = ExpansionCallback(fpe.Expansion(alpha=3, prune="incoming"), epoch=1)
    fit(tmp_path / "split", split, TensorBoardReport())
    values, metrics, ended = table(tmp_path / "dense")
    assert values | {"seed": "any"} == {
        **{"network": "MLP", "alpha": 1, "split at": "never"},
        **{"split partition": "none", "split pruning": "none"},
        **{"optimizer": "Adam", "lr": 0.001, "max_epochs": 3, "seed": "any", "non-zero parameters": 315},
    }
    assert metrics == ["best/val/accuracy", "test/loss", "test/accuracy"]
    assert ended
    (last,) = scalars(events(tmp_path / "dense"), "best/val/accuracy")
    assert last == (3 * BATCHES, pytest.approx(float(best.best_model_score)))
    others, metrics, _ = table(tmp_path / "split")
    assert others.keys() == values.keys()
    assert (others["alpha"], others["split at"], others["split pruning"]) == (3, "epoch 1", "incoming")
    assert metrics == ["test/loss", "test/accuracy"]


def test_several_splits_triggers_and_functions_are_named_in_words() -> None:
    def own_partition(*_: Any) -> None:
        raise NotImplementedError

    several = trainer(
        ExpansionCallback({"net.0": fpe.ByShape(), "net.*": fpe.Paper(alpha=3)}, step=[1, 2]),
        ExpansionCallback(fpe.Expansion(partition=own_partition), epoch=3),
    )
    found = columns_of(several, Plain())
    assert found["alpha"] == "2, 3, 2"
    assert found["split at"] == "step 1, 2, epoch 3"
    assert found["split partition"] == "by shape, random, own_partition"
    asked = trainer(ExpansionCallback(trigger=SaturationTrigger("val_loss")))
    assert columns_of(asked, Plain())["split at"] == "SaturationTrigger"
    assert columns_of(asked, Plain())["network"] == "Plain"


def test_a_fit_and_the_test_after_it_fill_one_row_in_one_folder(tiny_config: Path, tmp_path: Path) -> None:
    report = "--trainer.callbacks+=fpe_lightning.callbacks.TensorBoardReport"
    CLI(["fit", f"--config={tiny_config}", report, "--trainer.callbacks.hparams=[network/init_args/hidden]"])
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.*")}
    values, metrics, ended = table(folder)
    assert (values["hidden"], values["alpha"], ended) == (8, 2, True)
    found = events(folder)
    for name in metrics:
        assert len(scalars(found, name)) == 1, name


def test_hyperparameters_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    report = TensorBoardReport(hparams=["network/depth"])
    with pytest.raises(
        MisconfigurationException, match=r"asks for 'network/depth', .* has 'scheduler_interval', 'task'"
    ):
        fit(tmp_path, report)


def test_a_logger_that_writes_a_table_of_its_own_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="give it `default_hp_metric=False` to keep the table of `TensorBoardReport`"):
        fit(tmp_path, TensorBoardReport(), logger=TensorBoardLogger(tmp_path), max_epochs=1)


@pytest.mark.parametrize("name", ["charts", "metrics", "hparams"])
def test_a_name_in_the_place_of_a_list_is_refused(name: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"`{name}` has to be a list of names, found 'loss'"):
        TensorBoardReport(**{name: "loss"})


def test_other_loggers_are_left_alone(tmp_path: Path) -> None:
    def written(folder: Path, *callbacks: Any) -> tuple[str, str]:
        fit(folder, ExpansionCallback(epoch=1), *callbacks, logger=CSVLogger(folder, name="", version=""))
        return (folder / "metrics.csv").read_text(), (folder / "hparams.yaml").read_text()

    assert written(tmp_path / "with", TensorBoardReport()) == written(tmp_path / "without")


@pytest.mark.parametrize("options", [{"logger": False}, {"fast_dev_run": True}])
def test_nothing_is_written_without_a_logger_and_in_a_fast_run(options: dict[str, Any], tmp_path: Path) -> None:
    fit(tmp_path, ExpansionCallback(epoch=0), TensorBoardReport(), default_root_dir=tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    fit(tmp_path, ExpansionCallback(epoch=1), TensorBoardReport())
    tags = events(tmp_path).Tags()
    assert not [
        tag for tag in (*tags["scalars"], *tags["tensors"]) if tag.startswith(("expansion", "custom", "_hparams"))
    ]


def test_training_and_resuming_are_the_same_with_and_without_it(tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: Any, ckpt_path: Path | None = None) -> dict[str, Any]:
        saving = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        fitted = trainer(
            ExpansionCallback(epoch=1),
            *([] if ckpt_path else [saving]),
            *callbacks,
            **{"directory": folder, "max_epochs": 3, "logger": board(folder / "board")},
        )
        fitted.fit(classifier(), resumable(), loader(), ckpt_path=ckpt_path)
        return outcome(fitted)

    alone, watched = run(tmp_path / "alone"), run(tmp_path / "watched", TensorBoardReport())
    assert equal(alone, watched)
    for step in (4, BATCHES, 9):
        resumed = run(tmp_path / f"{step}", TensorBoardReport(), ckpt_path=tmp_path / "watched" / f"step={step}.ckpt")
        assert equal(resumed, alone), f"resumed after step {step}"
    assert TensorBoardReport().state_dict() == {}
