"""Networks on the pixels of small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from typing_extensions import override

from fpe_lightning.data import ImageDataModule
from studies.arrays import task_of
from studies.sets import digits
from studies.setting import Setting
from studies.task import Task


@dataclass(frozen=True)
class Pixels(Setting):
    """One setting of the study ``pixels``; a seed draws initial weights, order of samples and masks.

    Attributes:
        dataset: ``"digits"`` (1,797 pictures of 8 x 8 pixels that come with scikit-learn), or a name known to
            :class:`~fpe_lightning.data.images.ImageDataModule`, as for all that follow.
        data_dir: Folder of the pictures.
        download: Whether missing pictures may be downloaded.
        train_size: Train on that many pictures; None trains on all.
    """

    lr: float = 0.01
    split: int = 2
    epochs: int = 50
    batch_size: int | None = 64
    dataset: str = "digits"
    data_dir: str = "data"
    download: bool = False
    train_size: int | None = None

    @override
    def task(self, seed: int) -> Task:
        """The pictures, the same for every seed."""
        return _pixels(self.dataset, self.data_dir, self.download, self.train_size)


@lru_cache(maxsize=1)
def _pixels(dataset: str, data_dir: str, download: bool, train_size: int | None) -> Task:
    if dataset == "digits":
        return digits()
    return task_of(ImageDataModule(dataset, data_dir, flatten=True, download=download, train_size=train_size))
