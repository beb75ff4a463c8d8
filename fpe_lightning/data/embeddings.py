"""Embeddings of pictures by a frozen encoder, encoded once and mapped from the cache."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from fpe_lightning.data.arrays import ArrayDataModule, Split, Standardize, moments
from fpe_lightning.data.cache import CacheKey, open_cache
from fpe_lightning.data.encode import cache_embeddings, embedding_key
from fpe_lightning.data.encoder import ImageEncoder, load_encoder
from fpe_lightning.data.sources import ImageSplits, load_images
from fpe_lightning.data.split import stratified_choice
from fpe_lightning.paths import default_cache_dir

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class EmbeddingDataModule(ArrayDataModule):
    """Batches ``(embeddings, class numbers)`` of an image data set.

    ``prepare_data`` encodes what is not in the cache yet, in sight of a progress bar; ``setup`` maps the cache. The
    cache is keyed by the encoder's weights and preprocessing and by the pictures themselves, so a change of any of
    them is encoded anew. ``num_features``, ``num_classes`` and ``class_names`` can be read before ``prepare_data``.

    Args:
        dataset: Name known to :func:`~fpe_lightning.data.sources.load_images`.
        data_dir: Where the pictures lie.
        encoder: Name known to :func:`~fpe_lightning.data.encoder.load_encoder`.
        pretrained: Weights of the encoder, where its name does not imply them.
        batch_size: Training rows of a batch on each process; None takes all rows.
        eval_batch_size: The same for validation, test and prediction.
        dtype: How embeddings are stored; batches are float32 in any case.
        cache_dir: Parent of all caches; None takes ``$FPE_CACHE`` or the user's cache directory.
        seed: Seed of the training order and of the choice of ``train_size`` rows.
        train_size: Train on that many rows, chosen with the class shares of all; None trains on all.
        standardize: Whether each feature is shifted and scaled to mean 0, standard deviation 1 over the training rows.
        drop_last: Whether training leaves out an incomplete last step.
        download: Whether missing pictures may be downloaded.
        val_fraction: Part of the training pictures held out where a data set has no validation pictures.
        encode_batch_size: Pictures encoded at once.
        num_workers: Processes that read pictures while encoding.
        device: Where pictures are encoded; ``"auto"`` takes a GPU if there is one.

    Raises:
        ValueError: If a batch size or name is not possible.

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
        self.encode_batch_size, self.num_workers = encode_batch_size, num_workers
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
        self._keys: dict[Split, CacheKey] | None = None

    @cached_property
    def _images(self) -> ImageSplits:
        return load_images(self.dataset, self.data_dir, self.download, self.val_fraction)

    @cached_property
    def _encoder(self) -> ImageEncoder:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return load_encoder(self.encoder, self.pretrained, device)

    def _find_keys(self) -> dict[Split, CacheKey]:
        images = {split: getattr(self._images, split) for split in SPLITS}
        return {split: embedding_key(images[split], self._encoder, self.dataset, split, self.dtype) for split in SPLITS}

    @override
    def prepare_data(self) -> None:
        """Encode every split that is not in the cache, and check the digests of those that are."""
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
        # Only the process that prepared the data has loaded the encoder, and so knows which cache is the right one.
        keys = self._keys or (self._find_keys() if self.trainer is None or self.trainer.is_global_zero else None)
        keys = keys if self.trainer is None else self.trainer.strategy.broadcast(keys)
        assert keys is not None
        self._forget()
        arrays = {split: open_cache(key.folder(self.cache_dir), key) for split, key in keys.items()}
        if self.train_size is not None:
            features, labels = arrays["train"]
            rows = stratified_choice(torch.as_tensor(labels), self.train_size, self.seed).numpy()
            arrays["train"] = features[rows], labels[rows]
        self.transform = Standardize(*moments(arrays["train"][0])) if self.standardize else Tensor.float
        self._keys, self.arrays = keys, {**arrays}

    def _forget(self) -> None:
        """Let go of the encoder and of pictures in memory; what is still needed of them is in the keys."""
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
