"""Lightning's own loaders, without any callback of ours, under both names of the package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fpe_lightning as fpe

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
DATA = DataLoader(TensorDataset(X, X[:, :4]), batch_size=8)
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"], scope="module")
def pl(request: pytest.FixtureRequest) -> Any:
    pytest.importorskip(request.param)
    return importlib.import_module(request.param)


@pytest.fixture(scope="module")
def lit(pl: Any) -> type:
    class Lit(pl.LightningModule):
        """A project's module that has never heard of splits."""

        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.mse_loss(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("loss", self.training_step(batch, index))

        test_step = validation_step

        def predict_step(self, batch: Any, index: int) -> Tensor:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Lit


@pytest.fixture
def wide(pl: Any, lit: type, tmp_path: Path) -> tuple[Any, Path]:
    """A module that was split and trained, and its checkpoint."""
    model = lit()
    fpe.expand(model, fpe.Paper(alpha=2), example_inputs=X)
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(model, DATA)
    trainer.save_checkpoint(tmp_path / "wide.ckpt")
    return model.eval(), tmp_path / "wide.ckpt"


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"map_location": "cpu"}])
def test_load_from_checkpoint(lit: type, wide: tuple[Any, Path], options: dict[str, Any]) -> None:
    with fpe.expanded_checkpoints():
        model = lit.load_from_checkpoint(wide[1], **options)
    assert model.net[0].out_features == 32
    assert torch.equal(model(X), wide[0](X))
    assert fpe.count_nonzeros(model) == fpe.count_nonzeros(wide[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        lit.load_from_checkpoint(wide[1])


def test_load_from_checkpoint_of_another_width(lit: type, wide: tuple[Any, Path]) -> None:
    message = r"^The checkpoint is of another network: `net.0.weight` had shape \(16, 64\)"
    with fpe.expanded_checkpoints(), pytest.raises(RuntimeError, match=message):
        lit.load_from_checkpoint(wide[1], width=8)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_trainer_without_our_callback(pl: Any, lit: type, wide: tuple[Any, Path], verb: str) -> None:
    model = lit()
    with fpe.expanded_checkpoints():
        found = getattr(pl.Trainer(**QUIET), verb)(model, DATA, ckpt_path=wide[1], weights_only=True)
    assert torch.equal(model(X), wide[0](X))
    if verb == "predict":
        assert torch.allclose(torch.cat(found), wide[0](X))


def test_a_run_goes_on_without_our_callback(pl: Any, lit: type, wide: tuple[Any, Path]) -> None:
    models = []
    for build in (lit, lambda: wide[0].train()):
        model = build()
        trainer = pl.Trainer(max_epochs=2, enable_checkpointing=False, **QUIET)
        with fpe.expanded_checkpoints():
            trainer.fit(model, DATA, ckpt_path=wide[1], weights_only=True)
        assert trainer.global_step == 8
        models.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(each.parameters() for each in models), strict=True))
    fpe.sparse.check_masks(models[0])


def test_networks_that_are_built_late(pl: Any, lit: type, wide: tuple[Any, Path]) -> None:
    class Late(lit):  # type: ignore[valid-type,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))

    with fpe.expanded_checkpoints():
        loaded, tested = Late.load_from_checkpoint(wide[1]), Late()
        pl.Trainer(**QUIET).test(tested, DATA, ckpt_path=wide[1], weights_only=True)
    for model in (loaded, tested):
        assert torch.equal(model(X), wide[0](X))


def test_fabric(pl: Any, lit: type, wide: tuple[Any, Path], tmp_path: Path) -> None:
    if pl.__name__ != "lightning.pytorch":
        pytest.skip("the other package brings no Fabric")
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    saved, _ = fabric.setup(wide[0], torch.optim.AdamW(wide[0].parameters()))
    fabric.save(tmp_path / "fabric.ckpt", {"model": saved})
    model = lit()
    module, _ = fabric.setup(model, torch.optim.AdamW(model.parameters()))
    with fpe.expanded_checkpoints():
        fabric.load(tmp_path / "fabric.ckpt", {"model": module})
    assert torch.equal(model(X), wide[0](X))
