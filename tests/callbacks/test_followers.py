"""Teachers and targets in a LightningModule: found by themselves, split with their students, and resumed with them."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from boring import equal, network, outcome, resumable, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks, mask_of


class Follows(pl.LightningModule):
    """An online network and a target that follows it, in one of several ways."""

    def __init__(self, how: str = "average", target: nn.Module | None = None) -> None:
        super().__init__()
        self.how = how
        self.online = network()
        self.target = copy.deepcopy(self.online) if target is None else target
        if how != "held by no optimizer":
            self.target.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            goal = self.target(batch[0] + 0.1)
        return F.mse_loss(self.online(batch[0]), goal + 1)

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        if self.how == "load_state_dict":
            self.target.load_state_dict(self.online.state_dict())
        elif self.how == "state dict":
            for old, new in zip(self.target.state_dict().values(), self.online.state_dict().values(), strict=True):
                old.copy_(old * 0.9 + new * 0.1)
        else:
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.data = slow.data * 0.9 + fast.data * 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.online.parameters(), lr=0.01)


def check(module: Any) -> None:
    online, target = module.online, module.target
    assert online[0].out_features == target[0].out_features > 6
    for layer in (0, 3):
        assert torch.equal(mask_of(online[layer]), mask_of(target[layer]))  # type: ignore[arg-type]
    check_masks(module)


@pytest.mark.parametrize("how", ["average", "load_state_dict", "state dict", "held by no optimizer"])
@pytest.mark.parametrize("sites", [None, "online.*"])
def test_a_target_follows_and_resumes(how: str, sites: str | None, tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None = None) -> pl.Trainer:
        callback = ExpansionCallback(epoch=[1, 2], sites=sites)
        run = trainer(
            callback, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), directory=tmp_path, max_epochs=3
        )
        run.fit(Follows(how), resumable(), ckpt_path=ckpt_path)
        assert all(site.name == "online.0" for report in callback.reports for site in report.sites)
        check(run.lightning_module)
        return run

    expected = outcome(fit())
    assert equal(outcome(fit(tmp_path / "epoch=0.ckpt")), expected)
    assert equal(outcome(fit(tmp_path / "epoch=1.ckpt")), expected)


def test_a_target_with_first_weights_of_its_own_is_known_by_its_updates() -> None:
    callback, module = ExpansionCallback(epoch=1), Follows(target=network(seed=1))
    trainer(callback, max_epochs=2).fit(module, resumable())
    assert dict(callback.reports[0].teachers) == {"target": "online"}
    check(module)


def test_a_target_that_is_named() -> None:
    callback, module = ExpansionCallback(step=0, averages="targ*"), Follows(target=network(seed=1))
    trainer(callback, max_epochs=2).fit(module, resumable())
    check(module)
    with pytest.raises(MisconfigurationException, match=r"cannot split: `averages` names 'tarket', .* Did you mean"):
        trainer(ExpansionCallback(step=0, averages="tarket")).fit(Follows(), resumable())
    run = trainer(ExpansionCallback(step=0, averages="online.0"))
    with pytest.raises(MisconfigurationException, match=r"`online.0` was named as a copy"):
        run.fit(Follows(target=nn.Linear(48, 3)), resumable())
    assert run.global_step == 0


def test_a_frozen_network_of_its_own_stays() -> None:
    """Distillation: the teacher was trained before, and nothing updates it."""

    class Distilled(Follows):
        def on_train_batch_end(self, *_: Any) -> None:
            pass

    target = network(seed=1)
    before = copy.deepcopy(target.state_dict())
    callback, module = ExpansionCallback(epoch=1, sites="online.*"), Distilled(target=target.eval())
    trainer(callback, max_epochs=2).fit(module, resumable())
    assert module.online[0].out_features == 12
    assert equal(dict(module.target[0].state_dict()), {key[2:]: before[key] for key in before if key[0] == "0"})


def test_an_average_as_a_part_of_the_module() -> None:
    """The mean teacher by ``AveragedModel``, whose parameters the optimizer holds without a gradient."""

    class Mean(Follows):
        def __init__(self) -> None:
            super().__init__()
            self.target = AveragedModel(self.online, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

        def on_train_batch_end(self, *_: Any) -> None:
            self.target.update_parameters(self.online)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    module = Mean()
    callback = ExpansionCallback(epoch=1)
    run = trainer(callback, max_epochs=3)
    run.fit(module, resumable())
    assert dict(callback.reports[0].teachers) == {"target.module": "online"}
    assert torch.equal(mask_of(module.online[0]), mask_of(module.target.module[0]))  # type: ignore[arg-type]
    held = {id(p) for p in run.optimizers[0].param_groups[0]["params"]}
    assert held == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("where", ["callback", "list"])
def test_copies_of_a_part_that_torch_does_not_see(where: str) -> None:
    class Keeps(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            self.copies = [copy.deepcopy(pl_module.online)]
            if where == "list":
                pl_module.copies, self.copies = self.copies, []

        @torch.no_grad()
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:  # type: ignore[override]
            (slow,) = self.copies or pl_module.copies
            for old, new in zip(slow.parameters(), pl_module.online.parameters(), strict=True):
                old.lerp_(new, 0.1)

    module, keeps = Follows("load_state_dict"), Keeps()
    trainer(ExpansionCallback(epoch=1), keeps, max_epochs=2).fit(module, resumable())
    (slow,) = keeps.copies or module.copies
    assert torch.equal(mask_of(slow[0]), mask_of(module.online[0]))
    check_masks(slow)


def test_optimizers_that_hold_nothing_of_the_module() -> None:
    class Wrong(Follows):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(network().parameters(), lr=0.1)

    run = trainer(ExpansionCallback(epoch=1))
    with pytest.raises(MisconfigurationException, match=r"cannot split: SGD holds none of the model's parameters"):
        run.fit(Wrong(), resumable())
    assert run.global_step == 0


@pytest.mark.parametrize("where", ["module", "callback", "module itself"])
def test_averages_in_lists_and_dicts_are_found(where: str) -> None:
    class Average(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            shadow: Any = {name: p.detach().clone() for name, p in pl_module.online.named_parameters()}
            if where == "module itself":
                pl_module.shadow = shadow
            else:
                (pl_module if where == "module" else self).average = SimpleNamespace(shadow=shadow)

        @torch.no_grad()
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:  # type: ignore[override]
            shadow = pl_module.shadow if where == "module itself" else self.held(pl_module).average.shadow
            for name, parameter in pl_module.online.named_parameters():
                shadow[name].lerp_(parameter, 0.1)

        def held(self, pl_module: Any) -> Any:
            return pl_module if where == "module" else self

    module, average = Follows("load_state_dict"), Average()
    trainer(ExpansionCallback(epoch=1), average, max_epochs=2).fit(module, resumable())
    shadow = module.shadow if where == "module itself" else average.held(module).average.shadow
    assert shadow["0.weight"].shape == (12, 48)
    assert not (shadow["0.weight"] * ~mask_of(module.online[0])).any()  # type: ignore[operator]
