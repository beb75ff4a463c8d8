"""Networks for images: a timm backbone, and segmentation-models-pytorch, each in a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.field.project import Project
from benchmarks.field.trainers import InTrainer, lit_module


class Images(InTrainer):
    """A network for images in a LightningModule."""

    size = 64

    def network(self) -> nn.Module:
        """The network as the project builds it."""
        raise NotImplementedError

    def targets(self) -> Tensor:
        """A target for each of 8 images."""
        raise NotImplementedError

    def loss(self) -> Any:
        """A function of outputs and targets."""
        return nn.functional.cross_entropy

    def build(self) -> nn.Module:
        """The network in a LightningModule."""
        return lit_module(self.lightning, self.network(), self.loss())

    def data(self) -> Any:
        """Two batches of four images."""
        x = torch.randn(8, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, self.targets()), batch_size=4)

    def outputs(self, model: nn.Module) -> Tensor:
        """Outputs for one image."""
        network: Any = getattr(model, "net", model)
        with torch.no_grad():
            return network.eval()(torch.linspace(-1, 1, 3 * self.size**2).view(1, 3, self.size, self.size))


class TimmBackbone(Images):
    """A small ResNet of timm; loaded by ``timm.create_model(checkpoint_path=...)``."""

    name = "timm"
    packages = ("timm",)
    model = "test_resnet"

    def network(self) -> nn.Module:
        """Built by ``create_model``."""
        import timm

        return timm.create_model(self.model, num_classes=4)

    def targets(self) -> Tensor:
        """Classes."""
        return torch.arange(8) % 4

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Fit, and save the backbone by itself too."""
        module: Any = super().train(folder, epochs, callbacks, resume)
        torch.save(module.net.state_dict(), folder / "backbone.pth")
        return module

    def load(self, folder: Path) -> nn.Module:
        """``create_model`` reads the weights of the backbone."""
        import timm

        return timm.create_model(self.model, num_classes=4, checkpoint_path=str(folder / "backbone.pth"))


class Segmentation(Images):
    """A U-Net of segmentation-models-pytorch with its Dice loss; loaded by ``smp.from_pretrained``."""

    name = "segmentation-models-pytorch"
    packages = ("segmentation-models-pytorch",)

    def network(self) -> nn.Module:
        """A small U-Net."""
        import segmentation_models_pytorch as smp

        return smp.Unet("resnet18", encoder_depth=3, decoder_channels=(32, 16, 8), encoder_weights=None, classes=1)

    def targets(self) -> Tensor:
        """Masks of one class."""
        return torch.randint(2, (8, 1, self.size, self.size), generator=torch.Generator().manual_seed(1)).float()

    def loss(self) -> Any:
        """The project's Dice loss."""
        import segmentation_models_pytorch as smp

        return smp.losses.DiceLoss("binary", from_logits=True)

    def train(self, folder: Path, epochs: int, callbacks: Sequence[Any], resume: Path | None = None) -> nn.Module:
        """Fit, and ``save_pretrained``."""
        module: Any = super().train(folder, epochs, callbacks, resume)
        module.net.save_pretrained(str(folder / "unet"))
        return module

    def load(self, folder: Path) -> nn.Module:
        """``smp.from_pretrained``."""
        import segmentation_models_pytorch as smp

        return smp.from_pretrained(str(folder / "unet"))


PROJECTS: tuple[type[Project], ...] = (TimmBackbone, Segmentation)
