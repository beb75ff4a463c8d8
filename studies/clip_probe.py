"""Probes with hidden layers on frozen embeddings of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from typing_extensions import override

from fpe_lightning.data import EmbeddingDataModule
from studies.arrays import task_of
from studies.setting import Setting
from studies.task import Task


@dataclass(frozen=True)
class Probe(Setting):
    """One setting of the studies ``clip_probe`` and ``deep``; a seed draws initial weights, order of samples and masks.

    Attributes:
        dataset: See :class:`~fpe_lightning.data.embeddings.EmbeddingDataModule`, as for all that follow.
        encoder: Name of the encoder; embeddings are read from the cache, or encoded once.
        pretrained: Weights of the encoder, where its name does not imply them.
        data_dir: Folder of the pictures.
        download: Whether missing pictures may be downloaded.
        train_size: Train on that many rows; None trains on all.
    """

    lr: float = 0.01
    split: int = 2
    epochs: int = 50
    batch_size: int | None = 256
    dataset: str = "glyphs"
    encoder: str = "glyph-clip"
    pretrained: str | None = None
    data_dir: str = "data"
    download: bool = False
    train_size: int | None = None

    @override
    def task(self, seed: int) -> Task:
        """The embeddings, the same for every seed."""
        return _embeddings(self.dataset, self.encoder, self.pretrained, self.data_dir, self.download, self.train_size)


@lru_cache(maxsize=1)
def _embeddings(
    dataset: str, encoder: str, pretrained: str | None, data_dir: str, download: bool, train_size: int | None
) -> Task:
    return task_of(
        EmbeddingDataModule(dataset, data_dir, encoder, pretrained, download=download, train_size=train_size)
    )
