"""The arrays of a DataModule as the data of a study."""

from __future__ import annotations

import torch

from fpe_lightning.data import ArrayDataModule
from fpe_lightning.data.arrays import Stage
from studies.task import Part, Task


def task_of(module: ArrayDataModule) -> Task:
    """Prepare a DataModule and keep all of its samples in memory, as float32 rows.

    Args:
        module: Its samples are rows of numbers with class numbers.

    Returns:
        The same data for every seed.
    """
    module.prepare_data()
    module.setup("fit")

    def part(name: Stage) -> Part:
        features, labels = module.arrays[name]
        rows = torch.as_tensor(features)
        return rows.float() if module.transform is None else module.transform(rows), torch.as_tensor(labels).long()

    return Task(part("train"), part("val"), part("test"), module.num_classes)
