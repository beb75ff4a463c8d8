"""Batches of picture embeddings, encoded once by a frozen encoder and mapped from a cache."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fpe_lightning.data.arrays import ArrayDataModule, Stage, Standardize, moments
from fpe_lightning.data.cache import CacheKey, open_cache
from fpe_lightning.data.encode import cache_embeddings, embedding_key
from fpe_lightning.data.encoder import ImageEncoder, load_encoder
from fpe_lightning.data.sources import ImageSplits, load_images
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.paths import default_cache_dir

STAGES: tuple[Stage, ...] = ("train", "val", "test")


class EmbeddingDataModule(ArrayDataModule):
    """Batches ``(embeddings, class numbers)`` of an image data set.

    ``prepare_data`` encodes all splits that the cache lacks, under a progress bar; ``setup`` maps the cache. The key of
    a cache includes the encoder's weights, its preprocessing, and the bytes, names and labels of the pictures, so a
    change of any of them encodes the data again. The bytes of a file are read once for each of its sizes, times of
    change and inodes. ``num_features``, ``num_classes`` and ``class_names`` are known before ``prepare_data``.

    Args:
        dataset: Name of the data set: ``"glyphs"``, ``"fashion_mnist"``, ``"cifar10"``, ``"cifar100"`` or
            ``"image_folder"``, ``"hf:NAME"``, or the dotted name of a class of torchvision.
        data_dir: Directory of the pictures.
        encoder: Name of the encoder: ``"glyph-clip"``, an architecture of open_clip, ``"hf-hub:..."``,
            ``"local-dir:PATH"`` or ``"timm:NAME"``.
        pretrained: Tag or file of the encoder's weights, if its name does not imply them.
        batch_size: Training rows per batch on each process; None takes all rows.
        eval_batch_size: The same for validation, test and prediction.
        dtype: Type of the stored embeddings; batches are float32 in any case.
        cache_dir: Parent of all caches; None takes ``$FPE_CACHE`` or the user's cache directory.
        seed: Seed of the training order and of the choice of ``train_size`` rows.
        train_size: Number of training rows, chosen with the class shares of all; None trains on all.
        standardize: Whether to shift and scale each feature to mean 0 and standard deviation 1 over the training rows.
        drop_last: Whether training omits an incomplete last step.
        download: Whether to download missing pictures.
        val_fraction: Share of the training pictures for validation, if the data set has no validation pictures.
        encode_batch_size: Number of pictures per batch of the encoder.
        num_workers: Number of processes that read pictures for the encoder.
        device: Device of the encoder; ``"auto"`` takes a GPU if there is one.
        skip_unreadable: Whether to leave out pictures that cannot be read, with a warning that says how many; else the
            first ends the run with its path.

    Raises:
        ValueError: If a batch size or a type is out of range.

    Example:
        >>> EmbeddingDataModule(dataset="glyphs").num_classes
        94
    """

    def __init__(
        self,
        dataset: str = "glyphs",
        data_dir: str | Path = "data",
        encoder: str = "glyph-clip",
        pretrained: str | None = None,
        batch_size: int | None = 256,
        eval_batch_size: int | None = 1024,
        dtype: Literal["float16", "float32"] = "float16",
        cache_dir: str | Path | None = None,
        seed: int = 0,
        train_size: int | None = None,
        standardize: bool = False,
        drop_last: bool = False,
        download: bool = False,
        val_fraction: float = 0.1,
        encode_batch_size: int = 256,
        num_workers: int = 0,
        device: str = "auto",
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, drop_last, seed)
        if dtype not in ("float16", "float32"):
            raise ValueError(f"`dtype` has to be 'float16' or 'float32', found {dtype!r}.")
        if encode_batch_size < 1:
            raise ValueError(f"`encode_batch_size` has to be at least 1, found {encode_batch_size}.")
        self.save_hyperparameters(logger=False)
        self.dataset, self.data_dir, self.download, self.val_fraction = dataset, data_dir, download, val_fraction
        self.encoder, self.pretrained, self.device = encoder, pretrained, device
        self.dtype, self.train_size, self.standardize = dtype, train_size, standardize
        self.encode_batch_size, self.num_workers, self.skip_unreadable = encode_batch_size, num_workers, skip_unreadable
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
        self._keys: dict[Stage, CacheKey] | None = None

    @cached_property
    def _images(self) -> ImageSplits:
        skip = self.skip_unreadable
        return load_images(self.dataset, self.data_dir, self.download, self.val_fraction, skip_unreadable=skip)

    @cached_property
    def _encoder(self) -> ImageEncoder:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return load_encoder(self.encoder, self.pretrained, device)

    def _find_keys(self) -> dict[Stage, CacheKey]:
        images = {split: getattr(self._images, split) for split in STAGES}
        return {split: embedding_key(images[split], self._encoder, self.dataset, split, self.dtype) for split in STAGES}

    @override
    def prepare_data(self) -> None:
        """Encode every split that is not in the cache, and check the digests of the others."""
        if self._keys is not None:
            return
        keys = self._find_keys()
        for split, key in keys.items():
            images = getattr(self._images, split)
            cache_embeddings(images, self._encoder, key, self.cache_dir, self.encode_batch_size, self.num_workers)
        self._keys = keys
        self._forget()

    @override
    def setup(self, stage: str | None = None) -> None:
        """Map the cache, and choose the training rows."""
        if self.arrays:
            return
        # Only the process that prepared the data loaded the encoder, so it tells the others the keys of the caches.
        keys = self._keys or (self._find_keys() if self.trainer is None or self.trainer.is_global_zero else None)
        keys = keys if self.trainer is None else self.trainer.strategy.broadcast(keys)
        assert keys is not None
        self._forget()
        arrays = {split: open_cache(key.folder(self.cache_dir), key) for split, key in keys.items()}
        # Choose rows before the statistics, so that these describe the training rows only.
        if self.train_size is not None:
            features, labels = arrays["train"]
            rows = stratified_choice(torch.as_tensor(labels), self.train_size, self.seed).numpy()
            arrays["train"] = features[rows], labels[rows]
        self.transform = Standardize(*moments(arrays["train"][0])) if self.standardize else Tensor.float
        self._keys, self.arrays = keys, {**arrays}

    def _forget(self) -> None:
        """Free the encoder and the pictures in memory; the keys hold all further information about them."""
        for name in ("_encoder", "_images"):
            self.__dict__.pop(name, None)

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        """Name of each class number."""
        return self._keys["train"].classes if self._keys else tuple(self._images.train.classes)

    @property
    @override
    def dims(self) -> tuple[int]:
        """``(length of an embedding,)``."""
        return (self._keys["train"].dim if self._keys else self._encoder.dim,)
