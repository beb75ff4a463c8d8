"""Networks on whole pictures: a small CNN and a small vision transformer, trained from their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

import fpe_lightning as fpe
from fpe_lightning.data.arrays import moments
from fpe_lightning.data.images import read_pixels
from fpe_lightning.data.sources import LabelledImages, load_images
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.networks import SmallCNN, SmallViT
from studies.arms import Arm, Split, WideSparse
from studies.partitions import reads_rows
from studies.setting import Setting
from studies.task import Task


@dataclass(frozen=True)
class Pictures(Setting):
    """Settings of the studies ``cnn`` and ``transformer``; a seed draws initial weights, order of samples and masks.

    Attributes:
        dataset: See :class:`~fpe_lightning.data.images.ImageDataModule`, as for the two that follow.
        data_dir: Folder of the pictures.
        download: Whether missing pictures may be downloaded.
        classes: First class number and the one after the last; None takes all. Letters ``a`` to ``z`` are 64 to 89 of
            the glyphs.
        train_size: Train on that many pictures; None trains on all.
        shrink: Squares of this height and width, in pixels, become one pixel.
    """

    dataset: str = "glyphs"
    data_dir: str = "data"
    download: bool = False
    classes: list[int] | None = None
    train_size: int | None = None
    shrink: int = 1

    @override
    def check(self) -> None:
        super().check()
        if self.dataset == "image_folder":
            raise ValueError("`dataset: image_folder` holds pictures of any size, and this study keeps them in memory.")
        if self.classes is not None and len(self.classes) != 2:
            raise ValueError(
                f"`classes` are two numbers, the first class and the one after the last, found {self.classes}."
            )
        if self.shrink < 1:
            raise ValueError(f"`shrink` has to be at least 1, found {self.shrink}.")

    @override
    def check_arm(self, arm: Arm) -> None:
        expansions = arm.rules if isinstance(arm, Split) else []
        partitions = [each.partition for each in expansions if isinstance(each, fpe.Expansion)]
        placed = [arm.placed] if isinstance(arm, WideSparse) and arm.placed is not None else []
        for partition in filter(reads_rows, [*partitions, *placed]):
            raise ValueError(
                f"it asks for the partition {partition!r}, which needs inputs that each mean something, and these "
                "networks read pictures; leave it out."
            )

    @override
    def task(self, seed: int) -> Task:
        """The pictures, the same for every seed."""
        classes = None if self.classes is None else (self.classes[0], self.classes[-1])
        return pictures(self.dataset, self.data_dir, self.download, classes, self.train_size, self.shrink)


@lru_cache(maxsize=2)
def pictures(
    dataset: str, data_dir: str, download: bool, classes: tuple[int, int] | None, train_size: int | None, shrink: int
) -> Task:
    """Read the chosen pictures of a data set and standardise each channel over those to train on.

    Channels that are equal in every picture become one, as those of grey pictures are.

    Args:
        dataset: See :class:`Pictures`, as for all that follow.
        data_dir: Folder of the pictures.
        download: Whether missing pictures may be downloaded.
        classes: First class number and the one after the last.
        train_size: Train on that many pictures.
        shrink: Height and width of the squares that become one pixel.

    Returns:
        Pictures ``(n, channels, height, width)``.

    Raises:
        ValueError: If there are no such classes, or too few pictures.
    """
    images = load_images(dataset, data_dir, download)
    known = len(images.train.classes)
    first, after = classes or (0, known)
    if not 0 <= first < after - 1 < known:
        raise ValueError(
            f"`classes` are the first class number and the one after the last, at least two of 0 to {known - 1}; "
            f"found {first} and {after}."
        )
    parts = [
        _read(split, first, after, size, f"Reading {dataset}")
        for split, size in ((images.train, train_size), (images.val, None), (images.test, None))
    ]
    channels = 1 if all(bool((x == x[:, :1]).all()) for x, _ in parts) else parts[0][0].shape[1]
    shrunk = [(nn.functional.avg_pool2d(x[:, :channels].float(), shrink), y) for x, y in parts]
    mean, std = moments(shrunk[0][0], channels=True)
    train, val, test = (((x - mean) / torch.where(std > 0, std, 1), y) for x, y in shrunk)
    return Task(train, val, test, after - first)


def _read(images: LabelledImages, first: int, after: int, size: int | None, description: str) -> tuple[Tensor, Tensor]:
    """Pixels and class numbers from 0 of the chosen pictures; others are not even drawn."""
    # ImageSplit's labels are those of all of its pictures, chosen or not.
    labels = torch.as_tensor(images.labels)  # type: ignore[attr-defined]
    indices = getattr(images, "indices", None)
    labels = labels if indices is None else labels[indices]
    rows = ((labels >= first) & (labels < after)).nonzero().squeeze(1)
    if size is not None:
        rows = rows[stratified_choice(labels[rows] - first, size)]
    pixels, numbers = read_pixels(_Chosen(images, rows), description)
    return pixels, numbers - first


@dataclass(frozen=True)
class _Chosen:
    """Some of the pictures of a data set."""

    images: LabelledImages
    rows: Tensor
    fingerprint: str = ""
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[int(self.rows[index])]


@dataclass(frozen=True)
class CNN(Pictures):
    """One setting of the study ``cnn``: a :class:`~fpe_lightning.networks.cnn.SmallCNN` trained jointly.

    ``hidden`` are the neurons of the classifier head.

    Attributes:
        channels: Output channels of the convolutions.
        convolutions: Whether convolutions are split besides the head. The first one is not, as it reads too few
            channels to share out.
    """

    lr: float = 3e-3
    split: int = 1
    epochs: int = 10
    batch_size: int | None = 64
    channels: list[int] = field(default_factory=lambda: [8, 8])
    convolutions: bool = False

    @property
    @override
    def splits(self) -> list[str]:
        return ["head.0", *(f"blocks.{block}.0" for block in range(1, len(self.channels)) if self.convolutions)]

    @override
    def check(self) -> None:
        super().check()
        if not isinstance(self.hidden, int):
            raise ValueError(f"`hidden` is the one hidden width of the head, found {self.hidden}.")
        if min(self.channels, default=0) < 1:
            raise ValueError(f"`channels` has to be at least 1, found {self.channels}.")
        if self.convolutions and len(self.channels) < 2:
            raise ValueError("`convolutions` splits all but the first, found a single one; add to `channels`.")

    @override
    def widths(self) -> list[int]:
        return [*(self.channels[1:] if self.convolutions else []), *super().widths()]

    @override
    def build(self, task: Task, widths: Sequence[int]) -> SmallCNN:
        pictures, _ = task.train
        if self.batch_size is not None and len(pictures) % self.batch_size == 1:
            raise ValueError(
                f"{len(pictures)} pictures in batches of {self.batch_size} leave one that is alone, and a batch norm "
                "needs two; change `batch_size` or `train_size`."
            )
        *wider, hidden = widths
        channels = [*self.channels[: len(self.channels) - len(wider)], *wider]
        return SmallCNN(task.inputs, _side(task), task.outputs, channels, hidden)


@dataclass(frozen=True)
class ViT(Pictures):
    """One setting of the study ``transformer``: a :class:`~fpe_lightning.networks.vit.SmallViT` trained from scratch.

    ``hidden`` are the neurons of each feed-forward network, all of which are split.

    Attributes:
        patch: See :class:`~fpe_lightning.networks.vit.SmallViT`, as for the two that follow.
        width: Size of a token.
        heads: Of the attention.
        depth: Number of blocks.
    """

    lr: float = 3e-3
    split: int = 1
    epochs: int = 10
    batch_size: int | None = 64
    zero_biases: bool = True
    patch: int = 8
    width: int = 32
    heads: int = 2
    depth: int = 2

    @property
    @override
    def splits(self) -> list[str]:
        return ["blocks.*.ffn.0"]

    @override
    def check(self) -> None:
        super().check()
        if self.depth < 1 or len(self.widths()) != self.depth:
            raise ValueError(
                f"`hidden` has to be one number, or one for each block, of which there is at least one; found "
                f"{self.hidden} for {self.depth} blocks."
            )

    @override
    def widths(self) -> list[int]:
        return [self.hidden] * self.depth if isinstance(self.hidden, int) else list(self.hidden)

    @override
    def build(self, task: Task, widths: Sequence[int]) -> SmallViT:
        return SmallViT(task.inputs, _side(task), task.outputs, self.patch, self.width, self.heads, widths)


def _side(task: Task) -> int:
    """Height and width of the pictures, in pixels."""
    *_, height, width = task.train[0].shape
    if height != width:
        raise ValueError(f"The networks of this study read square pictures, found {height} x {width} pixels.")
    return height
