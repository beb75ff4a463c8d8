"""Small pictures in memory: bytes at rest, normalised float32 in batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import datasets

from fpe_lightning.data.images import ImageDataModule


def test_pixels_are_those_of_the_files(fashion_mnist: Path) -> None:
    data = ImageDataModule("fashion_mnist", fashion_mnist, normalise=False)
    data.setup()
    (pixels, labels), *_ = data.test_dataloader()
    original = datasets.FashionMNIST(fashion_mnist, train=False)
    assert torch.equal((pixels * 255).round().byte()[:, 0], original.data)
    assert torch.equal(labels, original.targets)
    assert data.arrays["train"][0].dtype == torch.uint8
    assert (data.dims, data.num_features, data.num_classes) == ((1, 28, 28), 1, 10)


def test_normalised_by_the_training_pictures(fashion_mnist: Path) -> None:
    data = ImageDataModule("fashion_mnist", fashion_mnist, flatten=True, batch_size=None)
    data.setup()
    (pixels, _), *_ = data.train_dataloader()
    assert pixels.shape == (54, 784)
    assert data.num_features == 784
    assert abs(float(pixels.mean())) < 1e-4
    assert abs(float(pixels.std()) - 1) < 1e-4


def test_train_size_keeps_the_class_shares(fashion_mnist: Path) -> None:
    data = ImageDataModule("fashion_mnist", fashion_mnist, train_size=20, batch_size=None)
    data.setup()
    (_, labels), *_ = data.train_dataloader()
    assert labels.bincount().tolist() == [2] * 10


def test_folders_are_sent_to_the_module_that_reads_them() -> None:
    with pytest.raises(ValueError, match=r"dataset='image_folder' may not fit; use ImageFolderDataModule"):
        ImageDataModule("image_folder")


def test_missing_pictures_say_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/FashionMNIST/raw, or allow `download=True`"):
        ImageDataModule("fashion_mnist", tmp_path).setup()
