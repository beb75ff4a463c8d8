"""Lightning's ModelPruning next to a split works, or is refused before training starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.sparse import check_masks


class Module(pl.LightningModule):
    """Two layers that are split, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
        self.skip = nn.Linear(32, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss: Tensor = nn.functional.mse_loss(self.net(batch[0]) + self.skip(batch[0]), batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def pruning(parameters: list[tuple[nn.Module, str]] | None, first: int, **options: Any) -> ModelPruning:
    settings = {"use_lottery_ticket_hypothesis": False, **options}
    return ModelPruning(
        "l1_unstructured", parameters, amount=0.3, apply_pruning=lambda epoch: epoch >= first, **settings
    )


def fit(module: Module, callback: ModelPruning, folder: Path) -> None:
    data = TensorDataset(torch.randn(32, 32), torch.randn(32, 1))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[ExpansionCallback(fpe.Paper(), epoch=1), callback],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, 16))


@pytest.mark.parametrize(
    ("chosen", "first"),
    [(lambda m: [(m.skip, "weight")], 0), (lambda m: [(m.net[0], "weight")], 1), (lambda m: None, 1)],
    ids=["another layer", "a split layer", "all layers"],
)
def test_it_prunes_next_to_a_split(
    chosen: Callable[[Module], list[tuple[nn.Module, str]] | None], first: int, tmp_path: Path
) -> None:
    module = Module()
    before = fpe.count_nonzeros(module)
    fit(module, pruning(chosen(module), first), tmp_path)
    assert module.net[0].out_features == 32
    check_masks(module)
    assert fpe.count_nonzeros(module) == before
    assert sum(int(parameter.count_nonzero()) for parameter in module.parameters()) <= before


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(MisconfigurationException, match="pass `use_lottery_ticket_hypothesis=False`"):
        fit(module, pruning(None, 1, use_lottery_ticket_hypothesis=True), tmp_path)
    with pytest.raises(MisconfigurationException, match=r"every layer at the end of epoch 0, .* epoch >= 1`"):
        fit(module, pruning(None, 0), tmp_path)
    assert module.trainer.global_step == 0


def test_a_layer_that_is_pruned_before_its_split_is_refused_in_the_first_step(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(MisconfigurationException, match=r"prunes `net.0.weight` at the end of epoch 0, .* epoch >= 1`"):
        fit(module, pruning([(module.net[0], "weight")], 0), tmp_path)
    assert module.trainer.global_step == 1
    assert not hasattr(module.net[0], "weight_orig")
