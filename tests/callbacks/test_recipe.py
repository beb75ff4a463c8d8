"""The recipe of two splits: when they happen, what they keep, and what is refused."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe
from fpe_lightning.callbacks import two_splits
from fpe_lightning.data.boolean import dnf_task
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP


class Data(pl.LightningDataModule):
    """Gives batches, and with ``samples`` training samples too."""

    def __init__(self, x: Tensor, y: Tensor, samples: bool) -> None:
        super().__init__()
        self.x, self.y = x, y
        if samples:
            self.training_samples = lambda: (x, y)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x, self.y.float()), batch_size=512, shuffle=True)


@pytest.mark.parametrize("samples", [True, False], ids=["samples of the datamodule", "samples of the first batches"])
def test_it_splits_twice_within_the_count_and_keeps_clauses_together(samples: bool) -> None:
    task = dnf_task(seed=0)
    callbacks = two_splits(early=0.1, again=0.4)
    module = Classifier(MLP(24, 8, 1), task="binary")
    before = fpe.count_nonzeros(module)
    trainer = pl.Trainer(
        max_epochs=10,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Data(*task.train, samples))
    assert [len(callback.reports) for callback in callbacks] == [1, 1]
    assert module.network.layers[0].out_features == 32
    assert fpe.count_nonzeros(module) == before
    mask = module.network.layers[0].fpe_mask_weight
    reached = torch.stack([mask[:, list(group)].any(1).view(8, 4).sum(1) for group in task.groups])
    # Equal shares of what is left after pruning may tear a clause; random shares tear nearly all.
    assert float((reached > 1).float().mean()) < 0.15


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"`again` has to be later than `early`, found 0.1 and 0.2"):
        two_splits(early=0.2, again=0.1)
    with pytest.raises(MisconfigurationException, match="integer of at least 2; found 1"):
        two_splits(alpha=1)


def test_a_network_whose_copies_do_not_fit_is_refused_when_the_recipe_is_made() -> None:
    with pytest.raises(MisconfigurationException, match=r"prune 54 of the 16 incoming weights of a neuron"):
        two_splits(inputs=16, outputs=26)
    assert len(two_splits(inputs=24, outputs=1)) == len(two_splits(alpha=3, inputs=512, outputs=94)) == 2


@pytest.mark.parametrize("classes", [3, 5, 8])
def test_it_refuses_what_the_splits_would_refuse(classes: int) -> None:
    """The least number of inputs that the check lets pass can be split twice."""

    def fits(inputs: int) -> bool:
        try:
            two_splits(inputs=inputs, outputs=classes)
        except MisconfigurationException:
            return False
        return True

    least = next(inputs for inputs in range(1, 99) if fits(inputs))
    x, y = torch.randn(60, least, generator=torch.Generator().manual_seed(0)), torch.arange(60) % classes
    model = MLP(least, 4, classes)
    before = fpe.count_nonzeros(model)
    for callback in two_splits():
        fpe.expand(model, callback.expansion, data=(x, y), example_inputs=x[:2])
    assert fpe.count_nonzeros(model) == before
    assert model.layers[0].out_features == 16
