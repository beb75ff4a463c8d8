"""What the callback finds in the first step of projects that know nothing of it, and when it says so."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from boring import Plain, loader, network, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback


def names(callback: ExpansionCallback) -> list[str]:
    return [site.name for report in callback.reports for site in report.sites]


class Packed(pl.LightningModule):
    """A recurrent network on packed sequences, whose lengths must be real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, lengths, y = batch
        return F.mse_loss(self(x, lengths), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def test_values_of_the_first_batch_are_used() -> None:
    parts = torch.randn(16, 9, 3), torch.randint(2, 9, (16,)), torch.randn(16, 1)
    callback = ExpansionCallback(step=1)
    trainer(callback, max_epochs=1).fit(Packed(), DataLoader(TensorDataset(*parts), 4))
    assert names(callback) == ["head.0"]


class Margin(nn.Module):
    """A loss that refuses batches of one class, such as zeros."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        if bool((y == y[0]).all()):
            raise ValueError("a batch needs at least two classes")
        return F.cross_entropy(z, y)


class Box:
    """What a batch of graphs looks like to a tracer."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Encoder(nn.Module):
    """Takes an object."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 48))

    def forward(self, box: Box) -> Tensor:
        return self.layers(box.x)


class Project(Plain):
    """A frozen backbone, an encoder of objects, a head, a loss that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = network(seed=1).requires_grad_(False).eval()
        self.encoder, self.loss = Encoder(), Margin()

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        with torch.no_grad():
            shift = self.frozen(x).mean()
        return self.loss(self.net(self.encoder(Box(x)) + shift), y)


def test_every_trained_network_is_split_and_the_rest_is_said(caplog: pytest.LogCaptureFixture) -> None:
    callback, module = ExpansionCallback(step=2), Project()
    before = {name: tensor.clone() for name, tensor in module.frozen.state_dict().items()}
    with caplog.at_level(logging.INFO):
        trainer(callback, max_epochs=1).fit(module, loader(batch_size=8))
    assert sorted(names(callback)) == ["encoder.layers.0", "net.0"]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.frozen.state_dict().items())
    (line,) = [record.message for record in caplog.records if record.message.startswith("Not split")]
    assert line == (
        "Not split: 3 widths (it reaches an output of the model), 1 width (its weights are frozen). "
        "`ExpansionCallback.left_out` lists names and reasons."
    )
    assert ("frozen.0", "its weights are frozen (requires_grad=False)") in [
        (each.name, each.reason) for each in callback.left_out
    ]


class NoHiddenWidth(Plain):
    """A linear model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(48, 3))


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (NoHiddenWidth, {}, r"NoHiddenWidth has no hidden width .*\(net.0: it reaches an output of the model\)"),
        (Plain, {"sites": "net.9"}, r"No site matches 'net.9'. Did you mean 'net.0'"),
        (Plain, {"exclude": "net.*"}, "`exclude` leaves no site to split"),
        (Plain, {"expansion": {"body.*": fpe.Paper()}}, r"No site matches 'body.\*'"),
        (Plain, {"example_inputs": torch.zeros(1, 48)}, "the forward raises NotImplementedError"),
    ],
)
def test_bad_news_comes_in_the_first_step(module: Any, options: dict[str, Any], message: str) -> None:
    run = trainer(ExpansionCallback(epoch=3, **options), max_epochs=4)
    with pytest.raises(MisconfigurationException, match=f"ExpansionCallback cannot split: .*{message}"):
        run.fit(module(), loader())
    assert run.global_step <= 1


def test_a_part_that_is_unfrozen_before_the_split_is_split() -> None:
    class Unfreezes(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net[0].requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch > 0)

    callback = ExpansionCallback(epoch=1)
    trainer(callback, max_epochs=2).fit(Unfreezes(), loader())
    assert names(callback) == ["net.0"]


@pytest.mark.parametrize("when", [{"epoch": 0}, {"epoch": 1}, {"step": [0, 1, 3]}], ids=str)
def test_lazy_modules_are_split_once_they_have_shapes(when: dict[str, Any]) -> None:
    class Lazy(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))

    callback, module = ExpansionCallback(fpe.Paper(), **when), Lazy()
    trainer(callback, max_epochs=2).fit(module, loader())
    splits = len(callback.schedule.moments)
    assert len(callback.reports) == splits
    assert module.net[0].out_features == 16 * 2**splits


def test_splits_of_one_batch_follow_each_other() -> None:
    callbacks = [ExpansionCallback(fpe.Paper(), step=2, sites="net.0"), ExpansionCallback(fpe.Paper(alpha=3), step=2)]
    module = Plain()
    trainer(*callbacks, max_epochs=1).fit(module, loader())
    assert module.net[0].out_features == 36


def test_the_split_of_a_user_is_seen() -> None:
    class Own(Plain):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 2:
                sites = fpe.find_sites(self.net, batch[0])
                fpe.expand(self.net, fpe.Paper(), sites=sites, optimizer=self.trainer.optimizers)

    module, callback = Own(), ExpansionCallback(fpe.Paper(), step=4)
    trainer(callback, max_epochs=1).fit(module, loader())
    assert module.net[0].out_features == 24


def test_one_input_series_do_not_stop_the_run() -> None:
    class Series(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))

        def step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch[0][:, :1]), batch[1])

    callback = ExpansionCallback(step=1)
    with pytest.warns(UserWarning, match="net.0 is not split: alpha=2 was asked for net.0, whose neurons have 1 inc"):
        trainer(callback, max_epochs=1).fit(Series(), loader())
    assert names(callback) == ["net.2"]
    with pytest.raises(MisconfigurationException, match=r"alpha=2 was asked for net\.0"):
        trainer(ExpansionCallback(step=1, sites="net.0"), max_epochs=1).fit(Series(), loader())
