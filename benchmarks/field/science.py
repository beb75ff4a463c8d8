"""Molecules (chemprop) and single cells (scvi-tools)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.field.project import Project
from benchmarks.field.trainers import InTrainer


class Chemprop(InTrainer):
    """Message passing over molecules; loaded by ``MPNN.load_from_checkpoint`` and by ``load_model``."""

    name = "chemprop"
    packages = ("chemprop",)

    def build(self) -> nn.Module:
        """Message passing and a head."""
        from chemprop import models
        from chemprop import nn as layers

        head = layers.RegressionFFN(input_dim=32, hidden_dim=32)
        return models.MPNN(layers.BondMessagePassing(d_h=32), layers.MeanAggregation(), head)

    def data(self) -> Any:
        """Small molecules with their lengths."""
        from chemprop import data

        names = ["CCO", "CCN", "c1ccccc1", "CC(=O)O"] * 4
        points = [data.MoleculeDatapoint.from_smi(name, np.array([float(len(name))])) for name in names]
        return data.build_dataloader(data.MoleculeDataset(points), batch_size=4, shuffle=False)

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Fit, and ``save_model``."""
        from chemprop import models

        module: Any = super().train(folder, epochs, callbacks, resume)
        models.save_model(folder / "model.pt", module)
        return module

    def load(self, folder: Path) -> nn.Module:
        """Both loaders have to compute the same."""
        from chemprop import models

        first = super().load(folder)
        second = models.load_model(folder / "model.pt", False)
        if not torch.equal(self.outputs(first), self.outputs(second)):
            raise ValueError("load_from_checkpoint and load_model differ")
        return second

    def outputs(self, model: nn.Module) -> Tensor:
        """Predictions for the first batch."""
        with torch.no_grad():
            return model.eval()(next(iter(self.data())).bmg)


class Scvi(Project):
    """A variational autoencoder of counts, trained by ``SCVI.train`` and loaded by ``SCVI.load``."""

    name = "scvi-tools"
    packages = ("scvi-tools",)
    exact = False  # a loaded model trains with a new optimizer, and draws samples

    def model(self) -> Any:
        """A model with its data."""
        import anndata
        import scvi

        torch.manual_seed(0)
        scvi.settings.seed = 0
        counts = np.random.default_rng(0).poisson(1.0, (64, 20)).astype("float32")
        cells = anndata.AnnData(counts)
        scvi.model.SCVI.setup_anndata(cells)
        return scvi.model.SCVI(cells, n_hidden=16, n_latent=4)

    def build(self) -> nn.Module:
        """Its network; the training plan is what the callback sees."""
        return nn.ModuleDict({"module": self.model().module})

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """``SCVI.train`` and ``save``; a resumed run trains a loaded model on."""
        import scvi

        if resume is not None:
            import fpe_lightning as fpe

            with fpe.expanded_checkpoints():
                model = scvi.model.SCVI.load(str(resume))
            epochs, callbacks = 1, ()
        else:
            model = self.model()
        quiet = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
        model.train(max_epochs=epochs, batch_size=16, train_size=1.0, callbacks=list(callbacks), **quiet)
        model.save(str(folder), overwrite=True, save_anndata=True)
        return model.module

    def load(self, folder: Path) -> nn.Module:
        """``SCVI.load``."""
        import scvi

        return scvi.model.SCVI.load(str(folder)).module

    def outputs(self, model: nn.Module) -> Tensor:
        """Means of the latent units."""
        network: Any = getattr(model, "module", model) if isinstance(model, nn.ModuleDict) else model
        if isinstance(model, nn.ModuleDict):
            network = model["module"]
        counts = torch.arange(160.0).view(8, 20) % 5
        with torch.no_grad():
            return network.eval().z_encoder.encoder(torch.log1p(counts))


PROJECTS: tuple[type[Project], ...] = (Chemprop, Scvi)
