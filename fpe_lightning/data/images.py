"""Pixels of small pictures, kept in memory as bytes."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from typing_extensions import override

from fpe_lightning.data.arrays import ArrayDataModule, LabelledDataModule, Stage, Standardize, moments
from fpe_lightning.data.sources import ImageSplits, LabelledImages, load_images
from fpe_lightning.data.split import stratified_choice

STAGES: tuple[Stage, ...] = ("train", "val", "test")


class PixelDataModule(LabelledDataModule):
    """Pictures of a named data set, and the shape of their pixels."""

    dataset: str
    data_dir: str | Path
    val_fraction: float
    flatten: bool
    skip_unreadable: bool = False

    @cached_property
    def _images(self) -> ImageSplits:
        skip = self.skip_unreadable
        return load_images(self.dataset, self.data_dir, val_fraction=self.val_fraction, skip_unreadable=skip)

    def _shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        """Name of each class number."""
        return tuple(self._images.train.classes)

    @property
    @override
    def dims(self) -> tuple[int, ...]:
        """Shape of the features of one picture: ``(channels, height, width)``, or ``(numbers,)`` if flattened."""
        shape = self._shape()
        return (torch.Size(shape).numel(),) if self.flatten else shape


class ImageDataModule(PixelDataModule, ArrayDataModule):
    """Batches ``(pixels, class numbers)`` of a data set of small pictures; pixels are float32.

    Args:
        dataset: ``"glyphs"``, ``"fashion_mnist"``, ``"cifar10"`` or ``"cifar100"``; for pictures in folders use
            :class:`~fpe_lightning.data.image_folder.ImageFolderDataModule`.
        data_dir: Directory of the pictures.
        flatten: Whether each picture is one row of numbers, for an MLP.
        normalise: Whether to shift and scale each channel to mean 0 and standard deviation 1 over the training
            pictures; otherwise pixels are in 0 .. 1.
        batch_size: Training pictures per batch on each process; None takes all.
        eval_batch_size: The same for validation, test and prediction.
        seed: Seed of the training order and of the choice of ``train_size`` pictures.
        train_size: Number of training pictures, chosen with the class shares of all; None trains on all.
        drop_last: Whether training omits an incomplete last step.
        download: Whether to download missing pictures.
        val_fraction: Share of the training pictures for validation, if the data set has no validation pictures.

    Raises:
        ValueError: If a batch size is not positive, or the data set is one of folders.

    Example:
        >>> data = ImageDataModule("glyphs", flatten=True)
        >>> data.num_features, data.num_classes
        (3072, 94)
    """

    def __init__(
        self,
        dataset: str = "fashion_mnist",
        data_dir: str | Path = "data",
        flatten: bool = False,
        normalise: bool = True,
        batch_size: int | None = 256,
        eval_batch_size: int | None = 1024,
        seed: int = 0,
        train_size: int | None = None,
        drop_last: bool = False,
        download: bool = False,
        val_fraction: float = 0.1,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, drop_last, seed)
        if dataset == "image_folder":
            raise ValueError(
                "ImageDataModule keeps pictures in memory, which those of dataset='image_folder' may not fit; "
                "use ImageFolderDataModule."
            )
        self.save_hyperparameters(logger=False)
        self.dataset, self.data_dir, self.download, self.val_fraction = dataset, data_dir, download, val_fraction
        self.flatten, self.normalise, self.train_size = flatten, normalise, train_size

    @override
    def prepare_data(self) -> None:
        """Download missing pictures, if allowed."""
        if self.download:
            load_images(self.dataset, self.data_dir, True, self.val_fraction)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Read the pictures into memory."""
        # Lightning calls `setup` for each stage; the pictures are read once.
        if self.arrays:
            return
        images = {split: getattr(self._images, split) for split in STAGES}
        arrays = {split: read_pixels(images[split], f"Reading {self.dataset}/{split}") for split in STAGES}
        if self.train_size is not None:
            pixels, labels = arrays["train"]
            # Before the moments: these are of the pictures that are trained on.
            rows = stratified_choice(labels, self.train_size, self.seed)
            arrays["train"] = pixels[rows], labels[rows]
        mean, std = moments(arrays["train"][0], channels=True)
        if not self.normalise:
            mean, std = torch.zeros_like(mean), torch.full_like(std, 255)
        self.transform = _Pixels(mean, std, self.flatten)
        self.arrays = {**arrays}

    @override
    def _shape(self) -> tuple[int, ...]:
        return tuple(_pixels(self._images.train[0][0]).shape)


class _Pixels(Standardize):
    """Standardize pixels, and flatten each picture if asked."""

    def __init__(self, mean: Tensor, std: Tensor, flatten: bool) -> None:
        super().__init__(mean, std)
        self.flatten = flatten

    def __call__(self, features: Tensor) -> Tensor:
        pixels = super().__call__(features)
        return pixels.flatten(1) if self.flatten else pixels


def read_pixels(images: LabelledImages, description: str) -> tuple[Tensor, Tensor]:
    """Read all pictures of a split.

    Args:
        images: Pairs of PIL image and class number, all pictures of one size.
        description: Text of the progress bar.

    Returns:
        Pixels ``(n, channels, height, width)`` uint8 and class numbers ``(n,)`` int64.
    """
    # Filled in place: a list of arrays would hold all pictures twice.
    labels = torch.empty(len(images), dtype=torch.int64)
    pixels = torch.empty((len(images), *_pixels(images[0][0]).shape), dtype=torch.uint8)
    for index in track(range(len(images)), description, transient=True):
        image, label = images[index]
        pixels[index], labels[index] = _pixels(image), label
    return pixels, labels


def _pixels(image: object) -> Tensor:
    """A PIL image as ``(channels, height, width)`` uint8."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)
