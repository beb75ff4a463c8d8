"""The base of every DataModule whose data are arrays: four loaders, and each process's part of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fpe_lightning.data.loader import BatchLoader

Array = Tensor | np.ndarray
Split = Literal["train", "val", "test"]


class LabelledDataModule(L.LightningDataModule):
    """What a network needs to know of labelled data; every DataModule here answers before ``setup``, too."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of the features of one sample."""
        raise NotImplementedError

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class number."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Length of a row of features; the number of channels where samples are images."""
        return self.dims[0]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Number of logits that a classifier of these targets has."""
        return self.num_classes


class ArrayDataModule(LabelledDataModule):
    """Serve arrays through :class:`~fpe_lightning.data.loader.BatchLoader`.

    A subclass fills ``arrays`` in ``setup`` and may set ``transform``. Rows are shuffled for training alone, and not
    even there under ``Trainer(overfit_batches=...)``, which needs the same batches in every epoch.

    Args:
        batch_size: Training rows of a batch on each process; None takes all rows in one step.
        eval_batch_size: The same for validation, test and prediction; None takes ``batch_size``.
        drop_last: Whether training leaves out an incomplete last step.
        seed: Seed of the training order.

    Raises:
        ValueError: If a batch size is not positive.

    Attributes:
        arrays: Features and labels of each split, once set up.
        transform: Applied to the features of each batch.
    """

    def __init__(
        self, batch_size: int | None = 256, eval_batch_size: int | None = None, drop_last: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"`{name}` has to be at least 1 (or None), found {size}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.drop_last, self.seed = drop_last, seed
        self.arrays: dict[Split, tuple[Array, Array]] = {}
        self.transform: Callable[[Tensor], Tensor] | None = None

    @override
    def train_dataloader(self) -> BatchLoader:
        """Return the shuffled training batches of this process."""
        return self._loader("train", training=True)

    @override
    def val_dataloader(self) -> BatchLoader:
        """Return this process's part of the validation rows."""
        return self._loader("val")

    @override
    def test_dataloader(self) -> BatchLoader:
        """Return this process's part of the test rows."""
        return self._loader("test")

    @override
    def predict_dataloader(self) -> BatchLoader:
        """Return this process's part of the test rows."""
        return self._loader("test")

    def training_samples(self, samples: int = 4096) -> tuple[Tensor, Tensor]:
        """Training features and labels, for partitions and pruning rules that need them.

        Args:
            samples: At most as many rows, evenly spaced.

        Returns:
            ``(n, ...)`` features as a batch holds them, and ``(n,)`` labels.
        """
        features, labels = self.arrays["train"]
        rows = range(0, len(features), -(-len(features) // samples))
        x, y = torch.as_tensor(features[:: rows.step]), torch.as_tensor(labels[:: rows.step])
        return x if self.transform is None else self.transform(x), y

    def _loader(self, split: Split, training: bool = False) -> BatchLoader:
        if split not in self.arrays:
            raise RuntimeError(f"{type(self).__name__} has no {split} data yet; call prepare_data() and setup() first.")
        features, labels = self.arrays[split]
        return BatchLoader(
            features,
            labels,
            self.batch_size if training else self.eval_batch_size,
            shuffle=training and not getattr(self.trainer, "overfit_batches", 0),
            drop_last=training and self.drop_last,
            seed=self.seed,
            transform=self.transform,
            processed=self._processed if training and self.trainer is not None else None,
            **self._share(),
        )

    def _processed(self) -> int:
        """Say how many batches of this epoch the Trainer is done with; it resumes with the one after them."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]

    def _share(self) -> dict[str, int]:
        """Say how many processes share the rows, and which of them this is."""
        # None without a distributed strategy; a strategy that shards a model over processes counts each copy once.
        return (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}


class Standardize:
    """Shift and scale features to mean zero and standard deviation one; a class, because processes may pickle it.

    Args:
        mean: Broadcastable to a batch.
        std: Broadcastable to a batch; where it is zero, nothing is divided.

    Example:
        >>> Standardize(torch.tensor([2.0, 5.0]), torch.tensor([2.0, 0.0]))(torch.tensor([[4, 5]]))
        tensor([[1., 0.]])
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.scale = mean, torch.where(std > 0, std, 1).reciprocal()

    def __call__(self, features: Tensor) -> Tensor:
        """Return float32 features."""
        return (features.float() - self.mean.to(features.device)) * self.scale.to(features.device)


def moments(features: Array, channels: bool = False, rows: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, over blocks of rows, so that a memory map is never copied whole.

    Args:
        features: ``(n, dim)``, or ``(n, C, H, W)`` with ``channels``.
        channels: Whether each channel, rather than each feature, has its own mean.
        rows: Rows taken at once.

    Returns:
        Mean and (population) standard deviation in float32, ``(dim,)`` or ``(C, 1, 1)``.

    Example:
        >>> moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        (tensor([2., 5.]), tensor([1., 0.]))
    """
    axes = (0, 2, 3) if channels else (0,)
    total = square = torch.zeros(())
    for start in range(0, len(features), rows):
        block = torch.as_tensor(features[start : start + rows]).double()
        total, square = total + block.sum(axes), square + block.square().sum(axes)
    count = len(features) * (features[0].shape[-1] * features[0].shape[-2] if channels else 1)
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    shape = (-1, 1, 1) if channels else (-1,)
    return mean.float().view(shape), std.float().view(shape)
