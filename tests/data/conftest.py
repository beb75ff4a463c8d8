"""Tiny data sets in the layouts that torchvision reads, and an encoder that needs no weights."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


@dataclass
class TinyEncoder:
    """Average the pixels of each row; counts how many pictures it has encoded."""

    name: str = "tiny/rows"
    digest: str = "d" * 64
    preprocess_description: str = "grey"
    dim: int = 8
    encoded: list[int] = field(default_factory=list)

    def preprocess(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image.convert("L").resize((4, self.dim)))) / 255

    def encode(self, images: Tensor) -> Tensor:
        self.encoded.append(len(images))
        return images.mean(dim=2)


@pytest.fixture
def encoder() -> TinyEncoder:
    return TinyEncoder()


def write_fashion_mnist(root: Path, train: int = 60, test: int = 20) -> Path:
    """Write random pictures as the four IDX files."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return root


@pytest.fixture
def fashion_mnist(tmp_path: Path) -> Path:
    return write_fashion_mnist(tmp_path / "data")


@pytest.fixture
def write_image_folder() -> Callable[..., Path]:
    def write(root: Path, splits: tuple[str, ...] = ("train", "val"), per_class: int = 5) -> Path:
        """Write coloured squares as ``SPLIT/CLASS/NUMBER.png`` for three classes."""
        for split in splits:
            for label, name in enumerate(("ant", "bee", "cat")):
                (root / split / name).mkdir(parents=True)
                for number in range(per_class):
                    colour = (80 * label, 40 * number, len(split))
                    Image.new("RGB", (12, 10), colour).save(root / split / name / f"{number}.png")
        return root

    return write


@pytest.fixture
def image_folder(write_image_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "pictures")
