"""Pixels of pictures that are read from their files, such as ImageNet's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from typing_extensions import override

from fpe_lightning.data.images import PixelDataModule
from fpe_lightning.data.loader import ShuffledSampler
from fpe_lightning.data.sources import LabelledImages

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The usual mean and standard deviation of each channel for ImageNet, for pixels in 0 .. 1."""


class ImageFolderDataModule(PixelDataModule):
    """Batches ``(pixels, class numbers)`` of ``train/CLASS/PICTURE``, ``val/...`` and optionally ``test/...``.

    Pictures are resized and cropped around their centre, without random changes. On several processes, Lightning's
    sampler repeats a few pictures to make the parts equal, so report test figures of one process.

    Args:
        data_dir: The folder that holds ``train/``.
        image_size: Height and width of the cropped picture, in pixels.
        flatten: Whether each picture is one row of numbers, for an MLP.
        normalise: Whether to shift and scale pixels by ``IMAGENET_MEAN`` and ``IMAGENET_STD``; otherwise they are in
            0 .. 1.
        batch_size: Training pictures per batch on each process.
        eval_batch_size: The same for validation, test and prediction.
        seed: Seed of the training order.
        drop_last: Whether training omits an incomplete last batch.
        val_fraction: Share of the training pictures for validation, if there is no ``test/`` and ``val/`` is the test
            set.
        num_workers: Number of processes that read pictures.
        skip_unreadable: Whether to leave out pictures that cannot be read, with a warning that says how many; else the
            first ends the run with its path.

    Raises:
        ValueError: If a size is not positive.
    """

    dataset = "image_folder"

    def __init__(
        self,
        data_dir: str | Path,
        image_size: int = 224,
        flatten: bool = False,
        normalise: bool = True,
        batch_size: int = 256,
        eval_batch_size: int = 256,
        seed: int = 0,
        drop_last: bool = False,
        val_fraction: float = 0.1,
        num_workers: int = 4,
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__()
        # Refused now, and not by a worker after the first epoch began.
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "image_size": image_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` has to be at least 1, found {size}.")
        self.save_hyperparameters(logger=False)
        self.data_dir, self.image_size, self.flatten, self.val_fraction = data_dir, image_size, flatten, val_fraction
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.seed, self.num_workers, self.skip_unreadable = seed, num_workers, skip_unreadable
        steps = [transforms.Resize(image_size), transforms.CenterCrop(image_size), transforms.ToTensor()]
        steps += [transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)] if normalise else []
        self.transform = transforms.Compose([*steps, torch.flatten] if flatten else steps)

    @override
    def setup(self, stage: str | None = None) -> None:
        """List the pictures."""
        assert self._images

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training pictures."""
        # An order by seed and epoch alone, so that a run that resumes sees the same batches.
        sampler = ShuffledSampler(len(self._images.train), self.seed)
        return self._loader(self._images.train, self.batch_size, sampler=sampler, drop_last=self.drop_last)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation pictures."""
        return self._loader(self._images.val, self.eval_batch_size)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures."""
        return self._loader(self._images.test, self.eval_batch_size)

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures."""
        return self.test_dataloader()

    def _loader(self, images: LabelledImages, batch_size: int, **options: Any) -> DataLoader[Any]:
        workers: dict[str, Any] = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(_Transformed(images, self.transform), batch_size, **workers, **options)

    @override
    def _shape(self) -> tuple[int, ...]:
        return 3, self.image_size, self.image_size


class _Transformed(Dataset[tuple[Tensor, int]]):
    """Pictures after a transform."""

    def __init__(self, images: LabelledImages, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label
