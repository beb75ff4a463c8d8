"""Image data sets by name: train, validation and test pictures with class names and fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from fpe_lightning.data.contents import digest_files
from fpe_lightning.data.glyphs import GlyphDataset
from fpe_lightning.data.readable import UNREADABLE, readable, unreadable
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.registry import Registry


class LabelledImages(Protocol):
    """Pairs of a PIL image and a class number, with the class names and a digest of the content."""

    @property
    def classes(self) -> Sequence[str]:
        """Name of each class number."""

    @property
    def fingerprint(self) -> str:
        """Digest that changes with the pictures and labels, but not with their folder."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


@dataclass(frozen=True)
class ImageSplits:
    """The three parts of an image data set.

    Attributes:
        train: Pictures for training.
        val: Pictures for the choice of settings, never for training.
        test: Pictures for reported figures.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages


@dataclass(frozen=True)
class ImageSplit(Dataset[tuple[Any, int]]):
    """Chosen pictures of a torchvision data set.

    Attributes:
        images: Pairs of PIL image and class number.
        labels: ``(images,)`` int64 class numbers.
        classes: Name of each class number.
        digest: Computes the digest of all ``images``; called on demand, because it reads the data.
        indices: Numbers of the pictures of this split; None takes all.
    """

    images: Dataset[tuple[Any, int]]
    labels: Tensor
    classes: tuple[str, ...]
    digest: Callable[[], str]
    indices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels) if self.indices is None else len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the picture and its class number.

        Raises:
            ValueError: If the file of the picture cannot be read; the message names it.
        """
        number = index if self.indices is None else int(self.indices[index])
        try:
            return self.images[number]
        except UNREADABLE as error:
            samples = getattr(self.images, "samples", None)
            if samples is None:
                raise
            raise ValueError(unreadable(samples[number][0], str(error) or type(error).__name__)) from error

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the pictures, labels and class names, and of the chosen numbers."""
        chosen = "all" if self.indices is None else hashlib.sha256(self.indices.numpy().tobytes()).hexdigest()
        return hashlib.sha256("\n".join((self.digest(), chosen, *self.classes)).encode()).hexdigest()

    def hold_out(self, fraction: float, seed: int) -> tuple[ImageSplit, ImageSplit]:
        """Divide into a larger and a smaller part by :func:`~fpe_lightning.data.split.stratified_choice`.

        Args:
            fraction: Size of the smaller part, rounded to whole pictures.
            seed: Seed of the choice.

        Returns:
            The larger and the smaller part.
        """
        held_out = stratified_choice(self.labels, max(1, round(fraction * len(self.labels))), seed)
        # Both parts keep the order of the data set.
        stays = torch.ones(len(self.labels), dtype=torch.bool)
        stays[held_out] = False
        return replace(self, indices=stays.nonzero().squeeze(1)), replace(self, indices=held_out)


Loader = Callable[[Path, bool, float, int], ImageSplits]
_DATASETS = Registry[Loader]("data set")
_FASHION_MNIST = "four files {train,t10k}-{images-idx3,labels-idx1}-ubyte from github.com/zalandoresearch/fashion-mnist"
_CIFAR = "www.cs.toronto.edu/~kriz/cifar.html"


def load_images(
    name: str,
    data_dir: str | Path = "data",
    download: bool = False,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    skip_unreadable: bool = False,
) -> ImageSplits:
    """Load an image data set by its name.

    Sets without validation pictures hold out a stratified part of their training pictures. These sets are FashionMNIST,
    CIFAR, and folders without ``test/``, whose ``val/`` becomes the test set, as is usual for ImageNet.

    Args:
        name: ``"glyphs"`` (drawn on the fly), ``"fashion_mnist"``, ``"cifar10"``, ``"cifar100"``, ``"image_folder"``
            for a folder with ``train/CLASS/PICTURE``, ``val/...`` and optionally ``test/...``, such as ImageNet's; a
            name given to :func:`register_dataset`; ``"hf:NAME"`` for a data set of the Hugging Face Hub (extra
            ``hub``) or a folder of its library; or the dotted name of a class of torchvision.
        data_dir: Directory of the files; for ``"image_folder"`` the folder that holds ``train/``.
        download: Whether torchvision may download missing files.
        val_fraction: Share of the training pictures for validation, if there are no validation pictures.
        split_seed: Seed of that choice; independent of a run's seed, so that all runs use the same pictures.
        skip_unreadable: Whether to leave out pictures in files that cannot be read, with a warning that says how many.
            All files are read for that, once for each state of a file.

    Returns:
        Train, validation and test pictures.

    Raises:
        ValueError: If the name is unknown, or the folders have different classes.
        FileNotFoundError: If the files are missing; the message says how to provide them by hand.

    Example:
        >>> splits = load_images("glyphs")
        >>> len(splits.train), len(splits.train.classes)
        (12032, 94)
    """
    from fpe_lightning.data.elsewhere import loader_of  # which needs the classes of this file

    load = loader_of(name) or _DATASETS.get(name)
    if not 0 < val_fraction < 1:
        raise ValueError(f"`val_fraction` has to be between 0 and 1, found {val_fraction}.")
    splits = load(Path(data_dir), download, val_fraction, split_seed)
    return _readable(splits, name) if skip_unreadable else splits


def _readable(splits: ImageSplits, name: str) -> ImageSplits:
    """The pictures whose files can be read; those in memory were read before."""
    parts = {part: getattr(splits, part) for part in ("train", "val", "test")}
    for part, split in parts.items():
        samples = getattr(getattr(split, "images", None), "samples", None)
        if samples is None:
            continue
        numbers = torch.arange(len(samples)) if split.indices is None else split.indices
        kept = readable([Path(samples[number][0]) for number in numbers.tolist()], f"{name}/{part}")
        if not all(kept):
            parts[part] = replace(split, indices=numbers[torch.tensor(kept)])
    return ImageSplits(**parts)


def register_dataset(name: str, load: Loader) -> None:
    """Give an image data set a name, for ``load_images`` and for ``dataset: NAME`` in a config.

    Args:
        name: A name that no other data set has.
        load: Takes the data directory, whether to download, the share of validation pictures and the seed of their
            choice, and returns :class:`ImageSplits`.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> register_dataset("glyphs", lambda data_dir, download, val_fraction, seed: load_images("glyphs"))
        Traceback (most recent call last):
        ...
        ValueError: The data set 'glyphs' is registered already; choose another name.
    """
    _DATASETS.register(name, load)


def _glyphs(data_dir: Path, download: bool, val_fraction: float, seed: int) -> ImageSplits:
    return ImageSplits(*(GlyphDataset(split) for split in ("train", "val", "test")))


def _torchvision(cls: type[Any], folder: str, files: str) -> Loader:
    """Create the loader of a torchvision data set that keeps its pictures in memory."""

    def load(data_dir: Path, download: bool, val_fraction: float, seed: int) -> ImageSplits:
        try:
            parts = [cls(data_dir, train=train, download=download) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            tried = (
                f"could not be downloaded ({str(error).splitlines()[0]})" if download else "was not found or is damaged"
            )
            raise FileNotFoundError(
                f"{cls.__name__} {tried}; put {files} into {(data_dir / folder).absolute()}"
                f"{'' if download else ', or allow `download=True`'}."
            ) from error
        splits = [
            ImageSplit(
                images=part,
                labels=torch.as_tensor(part.targets),
                classes=tuple(part.classes),
                digest=lambda part=part: _digest_arrays(part.data, part.targets),  # type: ignore[misc]
            )
            for part in parts
        ]
        return ImageSplits(*splits[0].hold_out(val_fraction, seed), splits[1])

    return load


def _digest_arrays(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(torch.as_tensor(array).contiguous().numpy().data)
    return digest.hexdigest()


def _image_folder(data_dir: Path, download: bool, val_fraction: float, seed: int) -> ImageSplits:
    train, val, test = (_folder_split(data_dir / part) for part in ("train", "val", "test"))
    if train is None or (val is None and test is None):
        missing = "train/" if train is None else "val/ or test/"
        raise FileNotFoundError(
            f"The image folder {data_dir.absolute()} has no {missing} with class folders in it; lay the pictures out "
            "as train/CLASS/PICTURE and val/CLASS/PICTURE (and test/CLASS/PICTURE if there is a test set)."
        )
    # Equal class folders give equal class numbers in all parts.
    for part, split in (("val", val), ("test", test)):
        if split is not None and split.classes != train.classes:
            odd = sorted(set(split.classes) ^ set(train.classes))
            raise ValueError(
                f"The image folder {data_dir.absolute()} has other classes in {part}/ than in train/ "
                f"({', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}); give both the same class folders."
            )
    if val is None or test is None:
        reported = test or val
        assert reported is not None
        return ImageSplits(*train.hold_out(val_fraction, seed), reported)
    return ImageSplits(train, val, test)


def _folder_split(folder: Path) -> ImageSplit | None:
    if not folder.is_dir() or not any(entry.is_dir() for entry in folder.iterdir()):
        return None
    try:
        images = datasets.ImageFolder(folder)
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"The image folder {folder.absolute()} has classes without pictures ({reason}); "
            "put pictures into their folders or remove them."
        ) from error

    def digest() -> str:
        paths = [Path(path) for path, _ in images.samples]
        known = zip(paths, images.targets, digest_files(paths, folder), strict=True)
        lines = [f"{path.relative_to(folder).as_posix()} {label} {digest}" for path, label, digest in known]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    return ImageSplit(images, torch.as_tensor(images.targets), tuple(images.classes), digest)


register_dataset("glyphs", _glyphs)
register_dataset("image_folder", _image_folder)
for _name, _cls, _folder, _files in (
    ("fashion_mnist", datasets.FashionMNIST, "FashionMNIST/raw", _FASHION_MNIST),
    ("cifar10", datasets.CIFAR10, "cifar-10-batches-py", "files of cifar-10-python.tar.gz from " + _CIFAR),
    ("cifar100", datasets.CIFAR100, "cifar-100-python", "files of cifar-100-python.tar.gz from " + _CIFAR),
):
    register_dataset(_name, _torchvision(_cls, _folder, f"the {_files}"))
