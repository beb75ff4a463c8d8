"""Batches of the Boolean task."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from typing_extensions import override

from fpe_lightning.data.arrays import ArrayDataModule
from fpe_lightning.data.boolean import Coding, DNFTask, Positives, dnf_task


class BooleanDataModule(ArrayDataModule):
    """Batches ``(inputs, targets)`` of a formula drawn by :func:`~fpe_lightning.data.boolean.dnf_task`.

    Args:
        clauses: Number of clauses.
        literals: Inputs of a clause; no input belongs to two clauses.
        inputs: Number of inputs.
        train_size: Number of training samples, half of them satisfying.
        val_size: Number of validation samples.
        test_size: Number of test samples.
        coding: ``"signs"`` codes false and true as -1 and +1, ``"bits"`` as 0 and 1.
        positives: ``"uniform"`` over all satisfying assignments, or ``"one_clause"``.
        target: ``"float"`` gives float32 targets 0 and 1 ``(n,)`` for one logit and binary cross-entropy. ``"class"``
            gives int64 targets for two logits and cross-entropy.
        batch_size: Training samples per batch on each process; None takes the full batch, as the paper does.
        eval_batch_size: The same for validation, test and prediction.
        seed: Decides clauses, samples and training order.

    Raises:
        ValueError: If a size or name of the task is out of range.

    Attributes:
        clauses: The inputs of each clause, for the partition ``"clause"``.

    Example:
        >>> data = BooleanDataModule(clauses=2, literals=3, inputs=6)
        >>> data.setup()
        >>> inputs, targets = next(iter(data.train_dataloader()))
        >>> inputs.shape, targets.shape, [len(group) for group in data.clauses]
        (torch.Size([2048, 6]), torch.Size([2048]), [3, 3])
    """

    def __init__(
        self,
        clauses: int = 8,
        literals: int = 3,
        inputs: int = 24,
        train_size: int = 2048,
        val_size: int = 2048,
        test_size: int = 4096,
        coding: Coding = "signs",
        positives: Positives = "uniform",
        target: Literal["float", "class"] = "float",
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed=seed)
        if target not in ("float", "class"):
            raise ValueError(f"`target` has to be 'float' or 'class', found {target!r}.")
        self.save_hyperparameters(logger=False)
        self.target, self.inputs = target, inputs
        self._task_settings = (clauses, literals, inputs, train_size, val_size, test_size, coding, positives, seed)

    @cached_property
    def task(self) -> DNFTask:
        """The formula and its samples."""
        return dnf_task(*self._task_settings)

    @property
    def clauses(self) -> list[list[int]]:
        """The inputs of each clause."""
        return [list(group) for group in self.task.groups]

    @property
    @override
    def dims(self) -> tuple[int]:
        """``(inputs,)``."""
        return (self.inputs,)

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        """The value of the formula for class 0 and class 1."""
        return ("false", "true")

    @property
    @override
    def num_outputs(self) -> int:
        """One logit for float targets, two for classes."""
        return 1 if self.target == "float" else 2

    @override
    def setup(self, stage: str | None = None) -> None:
        """Draw the samples."""
        for split, (inputs, truth) in {"train": self.task.train, "val": self.task.val, "test": self.task.test}.items():
            self.arrays[split] = inputs, truth.float() if self.target == "float" else truth.long()  # type: ignore[index]
