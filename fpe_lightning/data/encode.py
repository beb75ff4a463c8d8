"""Stream pictures through a frozen encoder into the embedding cache, under a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader

from fpe_lightning.data.cache import CacheKey, ensure_cache
from fpe_lightning.data.encoder import ImageEncoder
from fpe_lightning.data.sources import LabelledImages


class _Rate(ProgressColumn):
    """Pictures per second."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "", style="progress.data.speed")


class _Preprocess:
    """Collate PIL images into one float batch; a class, because workers may need to pickle it."""

    def __init__(self, preprocess: Callable[[Any], Tensor]) -> None:
        self.preprocess = preprocess

    def __call__(self, samples: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        return torch.stack([self.preprocess(image) for image in images]), torch.tensor(labels)


def embedding_key(images: LabelledImages, encoder: ImageEncoder, dataset: str, split: str, dtype: str) -> CacheKey:
    """Describe the embeddings of a split, without computing any.

    Args:
        images: The pictures of the split.
        encoder: The encoder.
        dataset: Name of the data set.
        split: Name of the split.
        dtype: ``"float16"`` or ``"float32"``.

    Returns:
        The key of their cache.
    """
    return CacheKey(
        encoder=encoder.name,
        weights=encoder.digest,
        preprocessing=f"{encoder.preprocess_description}; embeddings of length 1",
        dataset=dataset,
        fingerprint=images.fingerprint,
        split=split,
        count=len(images),
        dim=encoder.dim,
        dtype=dtype,
        classes=tuple(images.classes),
    )


def cache_embeddings(
    images: LabelledImages,
    encoder: ImageEncoder,
    key: CacheKey,
    cache_dir: Path,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: bool = True,
) -> Path:
    """Encode a split into its cache, unless the cache exists.

    Args:
        images: Pairs of PIL image and class number.
        encoder: A frozen encoder on its device.
        key: The result of :func:`embedding_key` for them.
        cache_dir: Parent of all caches.
        batch_size: Number of pictures per batch of the encoder.
        num_workers: Number of processes that read and preprocess pictures.
        progress: Whether to show a bar with pictures per second and the remaining time.

    Returns:
        The folder of the cache.

    Raises:
        ValueError: If an existing cache is damaged.
    """

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        loader: DataLoader[Any] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size,
            num_workers=num_workers,
            collate_fn=_Preprocess(encoder.preprocess),
            generator=torch.Generator(),  # the random state of a run must not depend on whether the cache exists
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress) as bar:
            task = bar.add_task(f"Encoding {key.dataset}/{key.split} with {key.encoder}", total=key.count)
            for pictures, labels in loader:
                yield encoder.encode(pictures).cpu().numpy(), labels.numpy()
                bar.advance(task, len(labels))

    return ensure_cache(key, cache_dir, batches)
