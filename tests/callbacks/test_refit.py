"""A pruning rule reaches the split through the callback."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback
from fpe_lightning.pruning import DiscriminantRefit


class Probe(pl.LightningModule):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 3))
        self.example_input_array = torch.zeros(2, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted before", "fitted to the first batches"])
def test_the_callback_splits_by_a_rule_and_the_count_holds_through_training(fitted: bool) -> None:
    x, y = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    module = Probe()
    before = fpe.count_nonzeros(module)
    rule = DiscriminantRefit().fit(x, y) if fitted else DiscriminantRefit()
    callback = ExpansionCallback(fpe.Expansion(alpha=2, prune=rule, optimizer_state="reset"), epoch=1)
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=10))
    assert fpe.count_nonzeros(module) == before
    assert callback.reports[0].sites[0].removed_outgoing == 8
    assert not bool(module.net[2].weight[~module.net[2].fpe_mask_weight].any())


def test_what_is_neither_a_name_nor_a_rule_is_refused() -> None:
    for rule in (3, DiscriminantRefit):
        with pytest.raises(
            ValueError, match=r"A pruning rule is a short name \(columns, global, .* `keep\(weights, exc"
        ):
            fpe.Expansion(prune=rule)  # type: ignore[arg-type]
