"""A run that stops, widens its checkpoint file and resumes ends as one that splits while it trains, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from boring import Plain, data, equal, network, outcome, resumable, trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn, optim

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks

BATCH = next(iter(resumable()))


class Groups(Plain):
    """Two optimizers, one of which holds two groups in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.step(batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, norm, last = self.net[0], self.net[1], self.net[3]
        groups = [{"params": [last.bias, first.weight], "lr": 0.1}, {"params": [norm.bias, norm.weight]}]
        adam = optim.AdamW(groups, lr=0.01, weight_decay=0.1)
        sgd = optim.SGD([last.weight, first.bias], lr=0.01, momentum=0.9)
        return [adam, sgd], [optim.lr_scheduler.StepLR(adam, 1, 0.5)]


def scheduled() -> Plain:
    return Plain(scheduler=lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 1, 0.5))


def fit(make: Callable[[], pl.LightningModule], directory: Path, *callbacks: Any, **options: Any) -> pl.Trainer:
    ckpt_path, steps = options.pop("ckpt_path", None), options.pop("every_n_train_steps", 6)
    saving = ModelCheckpoint(directory, filename="{step}", save_top_k=-1, every_n_train_steps=steps)
    run = trainer(*callbacks, saving, directory=directory, **{"max_epochs": 4, **options})
    module = make()
    if ckpt_path:
        fpe.restore_structure_from_file(module, ckpt_path)
    run.fit(module, resumable(), ckpt_path=ckpt_path)
    return run


class Compiled(Plain):
    """Compiles its network, as many projects do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="aot_eager")


CASES: dict[str, tuple[Callable[[], pl.LightningModule], fpe.Expansion | fpe.ByShape, dict[str, Any]]] = {
    "AdamW": (scheduled, fpe.ByShape(), {}),
    "several optimizers and groups": (Groups, fpe.ByShape(), {}),
    "Adafactor": (lambda: Plain(optimizer=partial(optim.Adafactor, lr=0.01)), fpe.ByShape(), {}),
    "all fields": (Plain, fpe.Expansion(alpha=3, prune="incoming", seed=7, partition="feature"), {}),
    "grouped": (Plain, fpe.Expansion(partition="shared", layout="grouped"), {}),
    "reset": (Plain, fpe.ByShape(optimizer_state="reset"), {}),
    "compiled": (Compiled, fpe.ByShape(), {}),
    "bf16": (Plain, fpe.Expansion(partition="feature"), {"precision": "bf16-true"}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("all fields", "grouped", "compiled") else [])
        for name in CASES
    ],
)
def test_widening_the_file_is_splitting_in_the_run(name: str, tmp_path: Path) -> None:
    make, expansion, trainers = CASES[name]
    live = fit(make, tmp_path / "live", ExpansionCallback(expansion, epoch=2), **trainers)
    fit(make, tmp_path, max_epochs=2, **trainers)
    narrow, wide = tmp_path / "step=12.ckpt", tmp_path / "wide.ckpt"
    if make is Groups:  # two optimizers step twice a batch
        narrow = tmp_path / "step=24.ckpt"
    before = narrow.read_bytes()
    report = fpe.expand_checkpoint(narrow, wide, make(), expansion, example_batch=BATCH)
    assert report.nonzeros_before == report.nonzeros_after
    assert narrow.read_bytes() == before
    resumed = fit(make, tmp_path / "resumed", ckpt_path=wide, **trainers)
    assert resumed.current_epoch == 4
    net = resumed.lightning_module.net
    assert getattr(net, "_orig_mod", net)[0].out_features == 6 * expansion.alpha
    check_masks(resumed.lightning_module)
    assert equal(outcome(resumed), outcome(live))


@pytest.mark.parametrize("expansion", [None, CASES["grouped"][1]], ids=["masked", "grouped"])
def test_a_second_split_in_the_middle_of_an_epoch_after_one_of_the_callback(
    expansion: fpe.Expansion | None, tmp_path: Path
) -> None:
    def first() -> ExpansionCallback:
        return ExpansionCallback(expansion, step=3)

    live = fit(Plain, tmp_path / "live", first(), ExpansionCallback(step=9))
    fit(Plain, tmp_path, first(), every_n_train_steps=9)
    # The callback of the first run noted how the networks are called: nothing has to be said.
    fpe.expand_checkpoint(tmp_path / "step=9.ckpt", tmp_path / "wide.ckpt", Plain())
    resumed = fit(Plain, tmp_path / "resumed", first(), ckpt_path=tmp_path / "wide.ckpt")
    assert equal(outcome(resumed), outcome(live))


AVERAGES: dict[str, Callable[[], pl.Callback]] = {
    "EMA": lambda: EMAWeightAveraging(decay=0.8),
    "SWA": lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_in_the_file_are_widened_with_the_weights(name: str, tmp_path: Path) -> None:
    live = fit(Plain, tmp_path / "live", AVERAGES[name](), ExpansionCallback(epoch=2))

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    fit(
        Plain, tmp_path, AVERAGES[name](), Stop(), every_n_train_steps=None
    )  # SWA wants to know the length of the whole run
    fpe.expand_checkpoint(tmp_path / "step=12.ckpt", tmp_path / "wide.ckpt", Plain, example_batch=BATCH)
    # Averages are copies of the module, made before any weights are loaded: this module comes wide.
    resumed = fit(Plain, tmp_path / "resumed", AVERAGES[name](), ckpt_path=tmp_path / "wide.ckpt")
    assert equal(outcome(resumed)["model"], outcome(live)["model"])


class WithForward(Plain):
    """Can say itself what its forward takes, and wants a Trainer for its scheduler."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = network(width)
        self.example_input_array = torch.zeros(2, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def configure_optimizers(self) -> Any:
        optimizer = optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [optim.lr_scheduler.OneCycleLR(optimizer, 0.1, self.trainer.estimated_stepping_batches)]


def test_a_class_is_built_from_hyperparameters_and_its_optimizers_may_be_given(tmp_path: Path) -> None:
    def make() -> WithForward:
        return WithForward(9)

    def optimizers(module: Any) -> optim.Optimizer:
        return optim.AdamW(module.parameters())

    live = fit(make, tmp_path / "live", ExpansionCallback(epoch=2))
    fit(make, tmp_path)
    narrow, wide = tmp_path / "step=12.ckpt", tmp_path / "wide.ckpt"
    with pytest.raises(ValueError, match=r"does not run without a Trainer .*; pass `configure_optimizers=lambda"):
        fpe.expand_checkpoint(narrow, wide, WithForward)
    fpe.expand_checkpoint(narrow, wide, WithForward, configure_optimizers=optimizers)
    assert equal(outcome(fit(make, tmp_path / "resumed", ckpt_path=wide)), outcome(live))


@pytest.mark.parametrize("weights_only", [True, False], ids=["weights-only checkpoint", "bare state_dict"])
def test_files_without_optimizers(weights_only: bool, tmp_path: Path) -> None:
    net = network()
    state = dict(net.state_dict())
    torch.save({"state_dict": state} if weights_only else state, tmp_path / "narrow.pt")
    x = torch.zeros(2, 48)
    fpe.expand_checkpoint(tmp_path / "narrow.pt", tmp_path / "wide.pt", net, example_inputs=x)
    assert net[0].out_features == 6, "the module is copied"
    found = torch.load(tmp_path / "wide.pt", weights_only=True)
    fpe.expand(net, example_inputs=x)
    assert equal(dict(found["state_dict"] if weights_only else found), dict(net.state_dict()))


def test_averages_under_a_prefix_and_everything_else_are_kept(tmp_path: Path) -> None:
    net = network()
    average = optim.swa_utils.AveragedModel(net)
    file = {"state_dict": net.state_dict(), "mine": [{"ema": average.state_dict()}, 3], "epoch": 5}
    torch.save(file, tmp_path / "narrow.pt")
    fpe.expand_checkpoint(tmp_path / "narrow.pt", tmp_path / "wide.pt", net, example_inputs=torch.zeros(2, 48))
    found = torch.load(tmp_path / "wide.pt", weights_only=True)
    assert found.keys() == file.keys()
    assert (found["epoch"], found["mine"][1]) == (5, 3)
    fpe.expand(net, example_inputs=torch.zeros(2, 48), averages=[average.module])
    assert equal(dict(found["mine"][0]["ema"]), dict(average.state_dict()))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run."""
    directory = tmp_path_factory.mktemp("narrow")
    fit(Plain, directory, max_epochs=1)
    return directory / "step=6.ckpt"


class Other(Plain):
    """Another width."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(7)


def two_optimizers(module: Any) -> Any:
    return [optim.SGD(module.net[0].parameters()), {"optimizer": optim.SGD(module.net[3].parameters())}]


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Other(), {}, r"step=6.ckpt does not fit Other: size mismatch for net.0.weight"),
    (nn.Linear(2, 2), {}, r"step=6.ckpt does not fit Linear: Missing key\(s\)"),
    (Plain(), {"example_batch": None}, "pass `example_inputs`"),
    (Plain(), {"example_batch": 3}, r"`training_step` of Plain does not run on `example_batch` "),
    (Plain(), {"alpha": 1}, "an integer of at least 2; found 1"),
    (Plain(), {"alpha": 40}, "Splitting net.0 by alpha=40"),
    (Plain(), {"sites": "body"}, "No site matches 'body'"),
    (Plain(), {"expansion": fpe.Paper(), "alpha": 3}, "`alpha=3` is short for an expansion, and `expansion` is given"),
    (Plain(), {"expansion": {"net.0": fpe.Paper(), "body": fpe.Paper()}}, "No site matches 'body'"),
    (Plain(), {"exclude": "*"}, "`exclude` leaves no site to split: net.0 are all excluded"),
    (Plain(), {"configure_optimizers": two_optimizers}, "holds 1 optimizers, and the module makes 2"),
    (
        Plain(),
        {"configure_optimizers": lambda module: optim.AdamW(module.net[0].parameters())},
        "AdamW holds groups of 6 parameters, and the module's one of 2",
    ),
    (partial, {}, "partial cannot be built from the hyperparameters of the checkpoint"),
]


@pytest.mark.parametrize(("module", "options", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    narrow: Path, module: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fpe.expand_checkpoint(narrow, tmp_path / "wide.ckpt", module, **{"example_batch": BATCH, **options})
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_never_overwritten(narrow: Path, tmp_path: Path) -> None:
    before = narrow.read_bytes()
    for target in (narrow, narrow.parent / ".." / narrow.parent.name / narrow.name):
        with pytest.raises(ValueError, match=r"step=6.ckpt exists already; choose another name"):
            fpe.expand_checkpoint(narrow, target, Plain(), example_batch=BATCH)
    assert narrow.read_bytes() == before
    with pytest.raises(ValueError, match=r"There is no directory .*nowhere to write wide.ckpt into"):
        fpe.expand_checkpoint(narrow, tmp_path / "nowhere" / "wide.ckpt", Plain(), example_batch=BATCH)


def test_a_target_that_appears_meanwhile_stays(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, save = tmp_path / "wide.ckpt", torch.save

    def slow(*arguments: Any) -> None:
        save(*arguments)
        target.write_text("mine")

    monkeypatch.setattr(torch, "save", slow)
    with pytest.raises(ValueError, match="exists already"):
        fpe.expand_checkpoint(narrow, target, Plain(), example_batch=BATCH)
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_nothing_behind(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"could not be written .No space left on device.; no file is left"):
        fpe.expand_checkpoint(narrow, tmp_path / "wide.ckpt", Plain(), example_batch=BATCH)
    assert not list(tmp_path.iterdir())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "shards").mkdir()
    torch.save({"epoch": 3, "model": 5}, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"state_dict": network().state_dict(), "mine": data()}, tmp_path / "objects.ckpt")
    for name, message in (
        ("none.ckpt", "There is no checkpoint at .*none.ckpt"),
        ("text.ckpt", "text.ckpt is no checkpoint, or was cut off"),
        ("shards", r"sharded checkpoint; save a full one, or .* lightning.pytorch.utilities.consolidate_checkpoint"),
        ("other.ckpt", "other.ckpt is no checkpoint of Lightning and no `state_dict`: it holds epoch, model"),
        ("list.ckpt", "list.ckpt holds a list, not a checkpoint"),
        ("objects.ckpt", "objects.ckpt holds more than plain types and tensors; .* `weights_only=False`"),
    ):
        for call in (
            partial(fpe.restore_structure_from_file, network(), tmp_path / name),
            partial(fpe.expand_checkpoint, tmp_path / name, tmp_path / "wide.ckpt", network()),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    options: dict[str, Any] = {"example_inputs": torch.zeros(2, 48), "weights_only": False}
    fpe.expand_checkpoint(tmp_path / "objects.ckpt", tmp_path / "wide.ckpt", network(), **options)
    assert fpe.restore_structure_from_file(network(), tmp_path / "wide.ckpt", weights_only=False)


@pytest.mark.parametrize("named", [True, False])
def test_states_that_were_gathered_from_shards_are_matched_by_parameter(named: bool, tmp_path: Path) -> None:
    """Their groups are sorted, and number parameters as the module does, or call them by name."""
    net = network()

    def optimizers(module: Any) -> optim.Optimizer:
        return optim.AdamW([{"params": [module[3].bias, module[0].bias]}, {"params": [module[3].weight]}], lr=0.01)

    optimizer = optimizers(net)
    net(torch.randn(4, 48)).sum().backward()
    optimizer.step()
    names = [name for name, _ in net.named_parameters()]
    order = ["3.bias", "0.bias", "3.weight"]
    plain = optimizer.state_dict()
    called = {name: name if named else names.index(name) for name in order}
    states = {called[order[position]]: state for position, state in plain["state"].items()}
    groups = [
        {**group, "params": [called[name] for name in params]}
        for group, params in zip(plain["param_groups"], [["0.bias", "3.bias"], ["3.weight"]], strict=True)
    ]
    file = {"state_dict": net.state_dict(), "optimizer_states": [{"state": states, "param_groups": groups}]}
    torch.save(file, tmp_path / "narrow.ckpt")
    options: dict[str, Any] = {"example_inputs": torch.zeros(2, 48), "configure_optimizers": optimizers}
    fpe.expand_checkpoint(tmp_path / "narrow.ckpt", tmp_path / "wide.ckpt", net, **options)
    (found,) = torch.load(tmp_path / "wide.ckpt", weights_only=True)["optimizer_states"]
    fpe.expand(net, example_inputs=torch.zeros(2, 48), optimizer=optimizer)
    assert found["param_groups"] == groups
    for name, position in zip(order, range(3), strict=True):
        assert equal(found["state"][called[name]], optimizer.state_dict()["state"][position])
    file["optimizer_states"][0]["param_groups"][1]["params"] = ["0.weight" if named else 0]
    torch.save(file, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="groups of the checkpoint's AdamW hold other parameters than the module's"):
        fpe.expand_checkpoint(tmp_path / "foreign.ckpt", tmp_path / "again.ckpt", network(), **options)
