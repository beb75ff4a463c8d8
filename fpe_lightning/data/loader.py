"""Load whole batches of arrays in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler


class _EpochMixin:
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order; Lightning calls this before every epoch."""
        self.epoch = epoch


class OrderedSampler(_EpochMixin, SequentialSampler):
    """Rows in their stored order, in every epoch."""


class ShuffledSampler(_EpochMixin, Sampler[int]):
    """Rows in an order drawn from ``(seed, epoch)`` alone, equal on every process.

    Args:
        length: Number of rows.
        seed: Any non-negative integer.

    Example:
        >>> sampler = ShuffledSampler(4, seed=0)
        >>> sorted(sampler), list(sampler) == list(sampler)
        ([0, 1, 2, 3], True)
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"`seed` has to be zero or positive, found {seed}.")
        self.length, self.seed = length, seed

    def order(self) -> Tensor:
        """Return the row numbers of this epoch, ``(length,)`` int64."""
        # With seed + epoch, epoch 1 of seed 0 would have the order of epoch 0 of seed 1; a hash of both prevents that.
        mixed = int(np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0])
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(mixed))

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.length


class BatchLoader:
    """Yield ``(features, labels)`` batches as slices of two arrays, with no work per sample.

    Each step of an epoch takes the next ``batch_size * num_replicas`` rows of the (shuffled) order and gives every
    process a consecutive share. No row occurs twice in an epoch, and every process gets the same number of batches.
    The end of an epoch depends on ``drop_last``:

    - ``drop_last=False``: every row occurs exactly once. The processes share the incomplete last step evenly, so their
      batches differ by at most one row. If that step has fewer rows than processes, it joins the step before. This
      suits evaluation, where a row that counts twice would falsify the result, and training.
    - ``drop_last=True``: the incomplete step is omitted; shuffling omits other rows in each epoch.

    Lightning finds ``sampler`` and calls its ``set_epoch``; outside Lightning call :meth:`set_epoch` before each epoch.
    A checkpoint holds :meth:`state_dict`, and a run that resumes in the middle of an epoch continues with the remaining
    batches. With ``processed``, these are the batches that the training loop has not processed, so the batch at which
    an exception stopped the run is repeated.

    Args:
        features: ``(rows, ...)`` tensor or (memory-mapped) array of any dtype.
        labels: ``(rows,)`` or ``(rows, ...)`` tensor or array.
        batch_size: Rows per batch on one process; None takes all rows in one step.
        shuffle: Whether to draw a new order for each epoch from ``(seed, epoch)``.
        drop_last: Whether to omit the incomplete last step.
        seed: Seed of the order; the global generator is not used.
        num_replicas: Number of processes that share the rows.
        rank: Rank of this process.
        transform: Applied to the features of each batch, such as ``torch.Tensor.float`` for half-precision storage.
        processed: Returns the number of batches of the current epoch that the training loop has processed.
        begin: Called before the first batch of each epoch is read.

    Raises:
        ValueError: If a size is not positive, the arrays differ in length, or a process would get no batch.

    Example:
        >>> loader = BatchLoader(torch.arange(10.0).view(5, 2), torch.arange(5), batch_size=2)
        >>> [labels.tolist() for _, labels in loader]
        [[0, 1], [2, 3], [4]]
        >>> [len(BatchLoader(torch.zeros(5, 2), torch.zeros(5), 2, num_replicas=2, rank=r)) for r in (0, 1)]
        [1, 1]
    """

    # Lightning reads both attributes if a loader has one of them.
    batch_sampler = None
    sampler: OrderedSampler | ShuffledSampler

    def __init__(
        self,
        features: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        batch_size: int | None = 256,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
        processed: Callable[[], int] | None = None,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self.features, self.labels = torch.as_tensor(features), torch.as_tensor(labels)
        rows = len(self.features)
        if rows != len(self.labels):
            raise ValueError(f"Each row needs one label, found {rows} rows of features and {len(self.labels)} labels.")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"`rank` has to be in 0 .. num_replicas - 1, found {rank} of {num_replicas}.")
        # With None, one step takes all rows, shared among the processes.
        self.num_replicas, self.rank = num_replicas, rank
        self.batch_size = -(-rows // num_replicas) if batch_size is None else batch_size
        if rows == 0 or rows < num_replicas:
            raise ValueError(f"{num_replicas} process(es) cannot share {rows} rows; each needs at least one row.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` has to be at least 1 (or None for all rows), found {batch_size}.")
        if drop_last and rows < self._step_rows:
            raise ValueError(
                f"`drop_last=True` leaves no batch: {rows} rows are fewer than one step of {num_replicas} process(es) "
                f"times `batch_size={self.batch_size}`; choose a smaller `batch_size` or `drop_last=False`."
            )
        self.drop_last, self.transform, self.processed, self.begin = drop_last, transform, processed, begin
        self.sampler = ShuffledSampler(rows, seed) if shuffle else OrderedSampler(range(rows))
        self._yielded = (0, 0)  # (epoch, number of batches yielded in it)
        self._resume_at: tuple[int, int] | None = None

    @property
    def _step_rows(self) -> int:
        return self.batch_size * self.num_replicas

    @property
    def epoch(self) -> int:
        """The epoch of the next order."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        # A rest smaller than the number of processes joins the last full step.
        steps, rest = divmod(len(self.features), self._step_rows)
        return steps + (not self.drop_last and (rest >= self.num_replicas or (rest > 0 and steps == 0)))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # A generator runs no code before its first batch. That matters: Lightning creates the iterator of the first
        # epoch before it calls `set_epoch`, and creates another one only to test whether it can.
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.begin is not None:
            self.begin()
        epoch, first = self._start()
        order = self.sampler.order().to(self.features.device) if isinstance(self.sampler, ShuffledSampler) else None
        for step in range(first, len(self)):
            rows = self._rows(step)
            self._yielded = (epoch, step + 1)
            if order is None:
                features, labels = self.features[rows], self.labels[rows]
            else:
                index = order[rows]
                # Two to four times as fast as `features[index]` for rows of some hundred numbers.
                features = self.features.index_select(0, index)
                labels = self.labels.index_select(0, index.to(self.labels.device))
            yield (features if self.transform is None else self.transform(features)), labels

    def _start(self) -> tuple[int, int]:
        """The epoch and its first batch; a loaded position counts once, and only in its own epoch."""
        epoch, resume_at = self.epoch, self._resume_at
        self._resume_at = None
        return epoch, resume_at[1] if resume_at is not None and resume_at[0] == epoch else 0

    def _rows(self, step: int) -> slice:
        """The rows of this process in one step; the last step takes all remaining rows."""
        begin = step * self._step_rows
        last = step == len(self) - 1 and not self.drop_last
        rows = len(self.features) - begin if last else self._step_rows
        return slice(begin + rows * self.rank // self.num_replicas, begin + rows * (self.rank + 1) // self.num_replicas)

    def _geometry(self) -> dict[str, Any]:
        """Everything that decides the content of the n-th batch, except the rank."""
        return {
            "rows": len(self.features),
            "batch_size": self.batch_size,
            "num_replicas": self.num_replicas,
            "seed": self.sampler.seed if isinstance(self.sampler, ShuffledSampler) else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the position inside the epoch; equal on all processes, integers only."""
        epoch, batch = self._resume_at or self._yielded
        if epoch != self.epoch:
            batch = 0
        elif self.processed is not None:
            batch = min(batch, self.processed())
        return {"epoch": self.epoch, "batch": batch, "batches": len(self), **self._geometry()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position when its epoch begins.

        Args:
            state_dict: A result of :meth:`state_dict`.

        Raises:
            ValueError: If the position is in the middle of an epoch that had other batches.
        """
        now = self._geometry()
        if missing := {"epoch", "batch", "batches", *now} - state_dict.keys():
            raise ValueError(f"This is not the state of a BatchLoader: it has no {sorted(missing)}.")
        batch, batches = state_dict["batch"], state_dict["batches"]
        changed = [f"{key}={state_dict[key]} (now {value})" for key, value in now.items() if value != state_dict[key]]
        if changed and 0 < batch < batches:
            raise ValueError(
                f"The checkpoint stops after batch {batch} of {batches} of an epoch with {', '.join(changed)}; "
                "restore these settings, or resume from a checkpoint at the end of an epoch."
            )
        self.set_epoch(state_dict["epoch"])
        self._resume_at = (state_dict["epoch"], batch)
