"""Networks on the pixels of small pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from typing_extensions import override

from fpe_lightning.data import ImageDataModule
from fpe_lightning.data.split import stratified_choice
from studies.arrays import task_of
from studies.errors import StudyError
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


def digits() -> Task:
    """Scikit-learn's digits, standardised by the training pictures: 60 % to train, 20 % to choose by, 20 % to test.

    Raises:
        StudyError: If scikit-learn is missing.

    Example:
        >>> task = digits()
        >>> task.inputs, task.classes, [len(y) for _, y in (task.train, task.val, task.test)]
        (64, 10, [1077, 360, 360])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise StudyError("The digits come with scikit-learn: `pip install scikit-learn`.") from error
    found = load_digits()
    x, y = torch.from_numpy(found.data).float(), torch.from_numpy(found.target)
    held_out = stratified_choice(y, 720, seed=0)
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[held_out] = False
    test = held_out[stratified_choice(y[held_out], 360, seed=1)]
    val = held_out[~torch.isin(held_out, test)]
    mean, std = x[rest].mean(0), x[rest].std(0, correction=0)
    x = (x - mean) / torch.where(std > 0, std, 1)
    return Task((x[rest], y[rest]), (x[val], y[val]), (x[test], y[test]), classes=10)
