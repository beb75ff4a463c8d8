"""The callback in projects that know nothing of it: what it finds, whom it tells, what it leaves alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from boring import Plain, equal, loader, network, outcome, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.partitions import Clause
from fpe_lightning.sparse import check_masks

HOOKS = [
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_expansion",
    "on_after_expansion",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
]


class Trace(pl.Callback):
    """Notes the order of hooks, and the width that each of them sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.arguments: dict[str, Any] = {}
        for hook in HOOKS:
            setattr(self, hook, self._note(hook))

    def _note(self, hook: str) -> Any:
        def note(trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
            self.seen.append((hook, pl_module.net[0].out_features))  # type: ignore[index, union-attr]
            self.arguments[hook] = arguments

        return note


@pytest.mark.parametrize("first", [True, False], ids=["told by a callback after", "told by a callback before"])
def test_order_of_hooks_around_a_split(first: bool) -> None:
    trace, callback = Trace(), ExpansionCallback(epoch=1)
    callbacks = [callback, trace] if first else [trace, callback]
    trainer(*callbacks, max_epochs=2, limit_train_batches=1).fit(Plain(), loader())
    # Callbacks listed before ours see the batch start with the narrow network.
    split = [("on_before_expansion", 6), ("on_after_expansion", 12)]
    start = [*split, ("on_train_batch_start", 12)] if first else [("on_train_batch_start", 6), *split]
    rest = HOOKS[4:]
    plain = [("on_train_epoch_start", 6), ("on_train_batch_start", 6), *((hook, 6) for hook in rest)]
    assert sorted(trace.seen[: len(plain)]) == sorted(plain)
    assert trace.seen[len(plain)] == ("on_train_epoch_start", 6)
    assert trace.seen[len(plain) + 1 : len(plain) + 4] == start
    assert sorted(trace.seen[len(plain) + 4 :]) == sorted((hook, 12) for hook in rest)
    ((sites,), (report,)) = trace.arguments["on_before_expansion"], trace.arguments["on_after_expansion"]
    assert [site.name for site in sites] == ["net.0"]
    assert report is callback.reports[0]


def test_an_expansion_that_is_set_later_counts() -> None:
    module, callback = Plain(), ExpansionCallback(alpha=2, epoch=1)
    callback.expansion = fpe.Paper(alpha=3)
    trainer(callback, max_epochs=2, limit_train_batches=1).fit(module, loader())
    assert module.net[0].out_features == 18


def test_training_goes_on_as_if_split_by_hand() -> None:
    callback = ExpansionCallback(alpha=3, seed=7, step=5)
    run = trainer(callback, max_epochs=2)
    run.fit(Plain(), loader())
    module = Plain()
    optimizer = module.configure_optimizers()
    batches = [batch for _ in range(2) for batch in loader()]
    for step, (x, y) in enumerate(batches):
        if step == 5:
            # The callback's sites are those of the network, under the module's names.
            sites = fpe.find_sites(_Holder(module.net), x)
            fpe.expand(module, alpha=3, seed=7, sites=sites, optimizer=optimizer)
        optimizer.zero_grad()
        F.cross_entropy(module.net(x), y).backward()
        optimizer.step()
    assert equal(dict(module.state_dict()), outcome(run)["model"])
    assert callback.reports[0].nonzeros_before == callback.reports[0].nonzeros_after == fpe.count_nonzeros(module)
    check_masks(run.lightning_module)


class _Holder(nn.Module):
    """The module's names around a network alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TwoNetworks(Plain):
    """Two encoders with keyword inputs and a temperature, as in contrastive learning."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = network(), network(width=7, seed=1)

    def step(self, batch: Any) -> Tensor:
        x, _ = batch
        return F.mse_loss(self.image(x), self.text(input=x.flip(1)))


def test_every_network_of_a_step_is_split() -> None:
    module = TwoNetworks()
    callback = ExpansionCallback({"image.*": fpe.ByShape(), "text.*": fpe.ByShape(alpha=3)}, step=1)
    trainer(callback, max_epochs=1).fit(module, loader())
    assert [site.name for site in callback.reports[0].sites] == ["image.0", "text.0"]
    assert (module.image[0].out_features, module.text[0].out_features, module.net[0].out_features) == (12, 21, 6)


def test_a_mapping_that_leaves_out_a_chosen_site_is_refused() -> None:
    expansion = {"image.*": fpe.ByShape()}
    module = TwoNetworks()
    callback = ExpansionCallback(expansion, step=1)
    trainer(callback, max_epochs=1).fit(module, loader())
    assert [site.name for site in callback.reports[0].sites] == ["image.0"], "none that it does not name is asked for"
    chosen = ExpansionCallback(expansion, step=1, sites=["image.0", "text.0"])
    with pytest.raises(MisconfigurationException, match="`expansion` holds nothing for the chosen site 'text"):
        trainer(chosen, max_epochs=1).fit(TwoNetworks(), loader())


class PartlyUsed(Plain):
    """The hidden units are an output too: another step reads them by a loss of fixed width."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("target", torch.zeros(6))

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        features = self.net[:3]
        return F.cross_entropy(self.net(x), y) + (features[0](x) - self.target).pow(2).mean()


def test_a_width_that_another_call_shows_to_be_an_output_is_not_split() -> None:
    with pytest.raises(MisconfigurationException, match=r"PartlyUsed has no .* net\.0: the call of net\.0 uses it"):
        trainer(ExpansionCallback(step=1), max_epochs=1).fit(PartlyUsed(), loader())


class ValidatesLess(TwoNetworks):
    """Validation calls one network, training both."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.image(batch[0])


@pytest.mark.parametrize("step", [0, 1])
def test_training_knows_better_than_the_sanity_check(step: int) -> None:
    module = ValidatesLess()
    run = trainer(ExpansionCallback(step=step), max_epochs=1, num_sanity_val_steps=1)
    run.fit(module, loader(), loader())
    assert module.image[0].out_features == 12
    assert module.text[0].out_features == (14 if step else 7)


class DictBatches(Plain):
    """Batches and calls of nested containers, with options that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.body({"x": [x, None]}, scale=2.0, mode="train"), y)


class Body(nn.Module):
    """Takes a nested batch and options."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, batch: dict[str, Any], scale: float = 1.0, mode: str = "") -> Tensor:
        assert mode == "train"
        return self.net(batch["x"][0]) * scale


def test_nested_inputs_are_taken() -> None:
    module = DictBatches()
    callback = ExpansionCallback(step=1)
    trainer(callback, max_epochs=1).fit(module, loader())
    assert module.body.net[0].out_features == 12
    assert callback.state_dict()["widths"]["sites"][0]["name"] == "body.net.0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "net.1"}, r"No site matches 'net.1'. Did you mean 'net.0'\? Sites of this model: net.0"),
        ({"expansion": {"body.*": fpe.Paper()}}, r"No site matches 'body.\*'"),
        ({"exclude": "net.*"}, "`exclude` leaves no site to split: net.0 are all excluded"),
        ({"exclude": "net.1"}, r"No site matches 'net.1'. Did you mean 'net.0'\?"),
        ({"alpha": 99}, "alpha=99 was asked for net.0, whose neurons have 48 incoming weights at most"),
        ({"expansion": fpe.Paper(partition="clause")}, "has no clauses: give `clauses`"),
        ({"expansion": fpe.Paper(partition=Clause([[0], [1]]))}, "`clauses` miss 46 of 48 inputs"),
        ({"example_inputs": torch.zeros(1, 48)}, "the forward raises NotImplementedError"),
        ({"example_inputs": [3]}, "it is a list"),
    ],
)
def test_what_cannot_be_split_is_said_at_the_split(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"ExpansionCallback cannot split: .*{message}"):
        trainer(ExpansionCallback(step=1, **options), max_epochs=1).fit(Plain(), loader())


def test_clauses_may_come_from_the_datamodule() -> None:
    class Data(pl.LightningDataModule):
        clauses = tuple(range(start, start + 6) for start in range(0, 48, 6))

        def train_dataloader(self) -> Any:
            return loader()

    module = Plain()
    trainer(ExpansionCallback(fpe.Expansion(partition="clause"), step=1), max_epochs=1).fit(module, datamodule=Data())
    mask = module.net[0].fpe_mask_weight.view(6, 2, 8, 6).any(0)
    for clause in range(8):
        assert mask[:, clause].any(1).sum() == 1, "a clause is torn apart"


def test_optimizers_that_cannot_follow_are_refused_in_one_sentence() -> None:
    module = Plain(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.01))
    with pytest.raises(MisconfigurationException, match="cannot split: LBFGS cannot continue after a split"):
        trainer(ExpansionCallback(step=1), max_epochs=1).fit(module, loader())


def test_weights_that_grow_back_are_noticed_at_once() -> None:
    class Noisy(Plain):
        def optimizer_step(self, *arguments: Any, **options: Any) -> None:
            super().optimizer_step(*arguments, **options)
            with torch.no_grad():  # after the step, which sets masked weights to zero
                self.net[0].weight.add_(0.01)

    with pytest.raises(RuntimeError, match=r"masked entries of `net.0.weight` are not zero: something wrote"):
        trainer(ExpansionCallback(step=1), max_epochs=1).fit(Noisy(), loader())


def test_hooks_and_handles_are_taken_away_again() -> None:
    module = Plain()
    run = trainer(ExpansionCallback(step=1), max_epochs=1)
    run.fit(module, loader())
    run.test(module, loader(), verbose=False)
    for each in module.modules():
        assert not any([each._forward_hooks, each._forward_pre_hooks, each._load_state_dict_pre_hooks])


def test_global_generator_is_not_used() -> None:
    def drawn(*callbacks: pl.Callback) -> Tensor:
        torch.manual_seed(3)
        trainer(*callbacks, max_epochs=1).fit(Plain(), loader())
        return torch.get_rng_state()

    assert torch.equal(drawn(), drawn(ExpansionCallback(step=2)))


def test_fast_dev_run_runs_through() -> None:
    module = Plain()
    run = trainer(ExpansionCallback(epoch=20), fast_dev_run=True)
    run.fit(module, loader(), loader())
    assert run.global_step == 1
    assert module.net[0].out_features == 6
