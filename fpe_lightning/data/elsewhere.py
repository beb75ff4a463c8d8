"""Image data sets that need no line of code here: those of the Hugging Face Hub, and classes of torchvision."""

from __future__ import annotations

import hashlib
import pydoc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from fpe_lightning.data.sources import ImageSplit, ImageSplits, Loader
from fpe_lightning.extras import extra

HUB = "hf:"
VALIDATION = ("validation", "val", "valid", "dev")


def loader_of(name: str) -> Loader | None:
    """The loader of ``"hf:NAME"``, or of the dotted name of a class of torchvision; None for any other name.

    Example:
        >>> loader_of("glyphs") is None, loader_of("torchvision.datasets.MNIST") is None
        (True, False)
    """
    if name.startswith(HUB):
        return partial(_hub, name.removeprefix(HUB))
    return partial(_class, name) if "." in name else None


class Pairs(Dataset[tuple[Any, int]]):
    """Rows of a table of the Hub as pairs of an RGB picture and a class number.

    Args:
        rows: Rows by number.
        image: The column of the pictures.
        label: The column of the class numbers.
    """

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self.rows, self.image, self.label = rows, image, label

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the picture and its class number."""
        row = self.rows[index]
        return row[self.image].convert("RGB"), int(row[self.label])


def _hub(name: str, data_dir: Path, download: bool, val_fraction: float, seed: int) -> ImageSplits:
    """A data set of the Hub, or a folder that ``save_to_disk`` of its library wrote."""
    with extra("hub", f"`dataset: {HUB}{name}`"):
        import datasets
    found = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    features = found["train"].features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    label = next((key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise ValueError(
            f"`{HUB}{name}` needs a column of pictures and one of class labels; it has "
            f"{', '.join(f'{key} ({type(kind).__name__})' for key, kind in features.items())}."
        )
    classes = tuple(features[label].names)

    def part(key: str) -> ImageSplit:
        labels = torch.tensor(found[key][label][:])
        pairs = Pairs(found[key], image, label)
        return ImageSplit(pairs, labels, classes, partial(_digest, pairs))

    validation = next((key for key in VALIDATION if key in found), None)
    return _three(
        part("train"),
        None if validation is None else part(validation),
        part("test") if "test" in found else None,
        (val_fraction, seed),
    )


def _class(name: str, data_dir: Path, download: bool, val_fraction: float, seed: int) -> ImageSplits:
    """A class with the arguments ``root``, ``download`` and ``train`` or ``split``, as those of torchvision."""
    cls: Any = pydoc.locate(name)
    if not callable(cls):
        raise ValueError(f"There is no data set `{name}`; give a known name, hf:NAME, or the dotted name of a class.")
    try:
        by_flag = "train" in cls.__init__.__code__.co_varnames
        keys = [{"train": True}, {"train": False}] if by_flag else [{"split": "train"}, {"split": "test"}]
        train, test = (_labelled(cls(data_dir, download=download, **key)) for key in keys)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"`{name}` was looked for in {Path(data_dir).absolute()}: {' '.join(str(error).split())} "
            "Set `download: true`, or put its files there."
        ) from error
    return _three(train, None, test, (val_fraction, seed))


def _labelled(images: Any) -> ImageSplit:
    """A data set of torchvision with its labels and class names."""
    numbers: Sequence[int] | None = next(
        (getattr(images, name) for name in ("targets", "labels", "_labels", "y") if hasattr(images, name)), None
    )
    labels = torch.as_tensor([label for _, label in images] if numbers is None else numbers).long()
    names = getattr(images, "classes", None) or [str(number) for number in range(int(labels.max()) + 1)]
    return ImageSplit(images, labels, tuple(map(str, names)), partial(_digest, images))


def _three(train: ImageSplit, val: ImageSplit | None, test: ImageSplit | None, held: tuple[float, int]) -> ImageSplits:
    """Three parts of what there is: the only held-out part is the test set, and validation is held out of the rest."""
    if test is None:
        val, test = None, val
    if test is None:
        train, test = train.hold_out(*held)
    if val is None:
        train, val = train.hold_out(*held)
    return ImageSplits(train, val, test)


def _digest(images: Any) -> str:
    """SHA-256 over the pixels and labels of all pictures."""
    digest = hashlib.sha256()
    for number in range(len(images)):
        picture, label = images[number]
        digest.update(f"{picture.size} {label}\n".encode())
        digest.update(np.asarray(picture).tobytes())
    return digest.hexdigest()
