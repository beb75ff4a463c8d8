"""Pixels of pictures that are read from their files, such as ImageNet's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from typing_extensions import override

from fpe_lightning.data.arrays import LabelledDataModule
from fpe_lightning.data.loader import ShuffledSampler
from fpe_lightning.data.sources import ImageSplits, LabelledImages, load_images

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel that are customary for ImageNet, for pixels in 0 .. 1."""


class ImageFolderDataModule(LabelledDataModule):
    """Batches ``(pixels, class numbers)`` of ``train/CLASS/PICTURE``, ``val/...`` and optionally ``test/...``.

    Pictures are resized and cropped around their centre, without random changes. On several processes, Lightning's
    sampler repeats a few pictures to make the parts equal: report test figures from one process.

    Args:
        data_dir: The folder that holds ``train/``.
        image_size: Height and width of what is left of a picture, in pixels.
        flatten: Whether each picture is one row of numbers, for an MLP.
        normalise: Whether pixels are shifted and scaled by ``IMAGENET_MEAN`` and ``IMAGENET_STD``; otherwise they are
            in 0 .. 1.
        batch_size: Training pictures of a batch on each process.
        eval_batch_size: The same for validation, test and prediction.
        seed: Seed of the training order.
        drop_last: Whether training leaves out an incomplete last batch.
        val_fraction: Part of the training pictures held out where there is no ``test/`` and ``val/`` is the test set.
        num_workers: Processes that read pictures.

    Raises:
        ValueError: If a size is not positive.
    """

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
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "image_size": image_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` has to be at least 1, found {size}.")
        self.save_hyperparameters(logger=False)
        self.data_dir, self.image_size, self.flatten, self.val_fraction = data_dir, image_size, flatten, val_fraction
        self.batch_size, self.eval_batch_size, self.drop_last = batch_size, eval_batch_size, drop_last
        self.seed, self.num_workers = seed, num_workers
        steps = [transforms.Resize(image_size), transforms.CenterCrop(image_size), transforms.ToTensor()]
        steps += [transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)] if normalise else []
        self.transform = transforms.Compose([*steps, torch.flatten] if flatten else steps)

    @cached_property
    def _images(self) -> ImageSplits:
        return load_images("image_folder", self.data_dir, val_fraction=self.val_fraction)

    @override
    def setup(self, stage: str | None = None) -> None:
        """List the pictures."""
        assert self._images

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training pictures."""
        train = _Transformed(self._images.train, self.transform)
        sampler = ShuffledSampler(len(train), self.seed)
        return DataLoader(train, self.batch_size, sampler=sampler, drop_last=self.drop_last, **self._workers())

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation pictures."""
        return DataLoader(_Transformed(self._images.val, self.transform), self.eval_batch_size, **self._workers())

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures."""
        return DataLoader(_Transformed(self._images.test, self.transform), self.eval_batch_size, **self._workers())

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test pictures."""
        return self.test_dataloader()

    def _workers(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        """Name of each class number."""
        return tuple(self._images.train.classes)

    @property
    @override
    def dims(self) -> tuple[int, ...]:
        """Shape of the features of one picture: ``(3, height, width)``, or ``(numbers,)`` if flattened."""
        shape = (3, self.image_size, self.image_size)
        return (3 * self.image_size**2,) if self.flatten else shape


class _Transformed(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: LabelledImages, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label
