"""The base of every DataModule of arrays: four loaders, and the share of rows of each process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fpe_lightning.data.loader import BatchLoader
from fpe_lightning.epochs import begin_epoch

Array = Tensor | np.ndarray
Stage = Literal["train", "val", "test"]


class LabelledDataModule(L.LightningDataModule):
    """The sizes that a network needs to know of labelled data; every DataModule here knows them before ``setup``."""

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
        """Length of a row of features; the number of channels if samples are images."""
        return self.dims[0]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_outputs(self) -> int:
        """Number of logits of a classifier of these targets."""
        return self.num_classes


class ArrayDataModule(LabelledDataModule):
    """Serve arrays through :class:`~fpe_lightning.data.loader.BatchLoader`.

    A subclass fills ``arrays`` in ``setup`` and may set ``transform``. Only training shuffles rows, except under
    ``Trainer(overfit_batches=...)``, which needs the same batches in every epoch.

    Args:
        batch_size: Training rows per batch on each process; None takes all rows in one step.
        eval_batch_size: The same for validation, test and prediction; None takes ``batch_size``.
        drop_last: Whether training omits an incomplete last step.
        seed: Seed of the training order.

    Raises:
        ValueError: If a batch size is not positive, or the seed is negative.

    Attributes:
        arrays: Features and labels of each stage, after ``setup``.
        transform: Applied to the features of each batch.
    """

    def __init__(
        self, batch_size: int | None = 256, eval_batch_size: int | None = None, drop_last: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"`{name}` has to be at least 1 (or None), found {size}.")
        if seed < 0:
            raise ValueError(f"`seed` has to be zero or positive, found {seed}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.drop_last, self.seed = drop_last, seed
        self.arrays: dict[Stage, tuple[Array, Array]] = {}
        self.transform: Callable[[Tensor], Tensor] | None = None

    @override
    def train_dataloader(self) -> BatchLoader:
        """Return the shuffled training batches of this process."""
        return self._loader("train", training=True)

    @override
    def val_dataloader(self) -> BatchLoader:
        """Return this process's share of the validation rows."""
        return self._loader("val")

    @override
    def test_dataloader(self) -> BatchLoader:
        """Return this process's share of the test rows."""
        return self._loader("test")

    @override
    def predict_dataloader(self) -> BatchLoader:
        """Return this process's share of the test rows."""
        return self._loader("test")

    def training_samples(self, samples: int = 4096) -> tuple[Tensor, Tensor]:
        """Training features and labels, for partitions and pruning rules that fit data.

        Args:
            samples: Largest number of rows; they are evenly spaced.

        Returns:
            ``(n, ...)`` features as in a batch, and ``(n,)`` labels.
        """
        features, labels = self.arrays["train"]
        rows = range(0, len(features), -(-len(features) // samples))
        x, y = torch.as_tensor(features[:: rows.step]), torch.as_tensor(labels[:: rows.step])
        return x if self.transform is None else self.transform(x), y

    def _loader(self, stage: Stage, training: bool = False) -> BatchLoader:
        if stage not in self.arrays:
            raise RuntimeError(f"{type(self).__name__} has no {stage} data yet; call prepare_data() and setup() first.")
        features, labels = self.arrays[stage]
        return BatchLoader(
            features,
            labels,
            self.batch_size if training else self.eval_batch_size,
            shuffle=training and not getattr(self.trainer, "overfit_batches", 0),
            drop_last=training and self.drop_last,
            seed=self.seed,
            transform=self.transform,
            processed=self._processed if training and self.trainer is not None else None,
            begin=self._begin if training and self.trainer is not None else None,
            **self._share(),
        )

    def _processed(self) -> int:
        """The number of batches of this epoch that the Trainer has processed; a resumed run starts with the next."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]

    def _begin(self) -> None:
        if self.trainer is not None and self.trainer.training:
            begin_epoch(self.trainer)

    def _share(self) -> dict[str, int]:
        """The number of processes that share the rows, and the rank of this one."""
        # None without a distributed strategy. A strategy that shards a model over processes counts each replica once.
        return (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}


class Standardize:
    """Shift and scale features to mean zero and standard deviation one; a class, because workers may pickle it.

    Args:
        mean: Mean of each feature, broadcastable to a batch.
        std: Standard deviation of each feature, broadcastable to a batch; features with zero are not divided.

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
    """Mean and standard deviation, computed over blocks of rows so that a memory map is never copied whole.

    Args:
        features: ``(n, dim)``, or ``(n, C, H, W)`` with ``channels``.
        channels: Whether each channel, rather than each feature, has its own mean.
        rows: Number of rows in a block.

    Returns:
        Mean and (population) standard deviation in float32, ``(dim,)`` or ``(C, 1, 1)``.

    Example:
        >>> moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        (tensor([2., 5.]), tensor([1., 0.]))
    """
    axes = (0, 2, 3) if channels else (0,)
    # Sums of values and of squares in double precision: one pass over the data, for both moments.
    total = square = torch.zeros(())
    for start in range(0, len(features), rows):
        block = torch.as_tensor(features[start : start + rows]).double()
        total, square = total + block.sum(axes), square + block.square().sum(axes)
    # A channel averages over the pixels of all pictures.
    count = len(features) * (features[0].shape[-1] * features[0].shape[-2] if channels else 1)
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    shape = (-1, 1, 1) if channels else (-1,)
    return mean.float().view(shape), std.float().view(shape)
