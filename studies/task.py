"""Data of one seed of a study: rows of numbers or pictures, class numbers, and the clauses where they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from studies.stacked import Loss

Part = tuple[Tensor, Tensor]
"""Inputs ``(n, inputs)`` or ``(n, channels, height, width)`` float32, and class numbers ``(n,)`` int64."""
AT_ONCE = 4096
"""Samples of one forward pass; more pictures would take much memory."""


@dataclass(frozen=True)
class Task:
    """Samples to learn from, to choose by and to report on.

    Attributes:
        train: Training samples.
        val: Validation samples.
        test: Test samples.
        classes: Number of classes; two are told apart by the sign of one output.
        groups: The inputs of each clause, where they are known.
        others: Further test samples, by name.

    Example:
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 1])
        >>> task = Task((x, y), (x, y), (x, y), classes=2)
        >>> task.outputs, task.targets
        (1, tensor([[0., 1., 1.]]))
    """

    train: Part
    val: Part
    test: Part
    classes: int
    groups: Sequence[Sequence[int]] | None = None
    others: Mapping[str, Part] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Numbers in a row, or channels of a picture."""
        return self.train[0].shape[1]

    @property
    def outputs(self) -> int:
        """Outputs of a network: one for two classes, else one a class."""
        return 1 if self.classes == 2 else self.classes

    @property
    def loss(self) -> Loss:
        """Binary cross-entropy of one output, cross-entropy of several."""
        functional = nn.functional
        return functional.binary_cross_entropy_with_logits if self.outputs == 1 else functional.cross_entropy

    @cached_property
    def targets(self) -> Tensor:
        """Training targets as the loss takes them: ``(1, n)`` float32 for one output, else ``(n,)`` int64."""
        return self.train[1].float().unsqueeze(0) if self.outputs == 1 else self.train[1]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of the outputs ``(n, outputs)``."""
        return logits.sigmoid() if self.outputs == 1 else logits.softmax(1)

    def loss_of(self, network: nn.Module, rows: Tensor) -> Tensor:
        """The loss of one network on some of the training samples, a scalar."""
        outputs = network(self.train[0][rows])
        return self.loss(outputs.T if self.outputs == 1 else outputs, self.targets[..., rows])

    @torch.no_grad()
    def accuracy(self, networks: Sequence[nn.Module], part: Part) -> float:
        """Share of samples that the mean of the networks' probabilities gets right, in evaluation mode."""
        mean = self._mean(networks, part[0])
        guess = mean.squeeze(1) > 0.5 if self.outputs == 1 else mean.argmax(1)
        return float((guess == part[1]).float().mean())

    @torch.no_grad()
    def calibration_error(self, networks: Sequence[nn.Module], part: Part, bins: int = 15) -> float:
        """How far the confidence of a guess is from its accuracy, in [0, 1]: the expected calibration error.

        Args:
            networks: Their probabilities are averaged.
            part: Inputs and class numbers.
            bins: Of equal width, into which confidences are sorted.
        """
        mean = self._mean(networks, part[0])
        if self.outputs == 1:
            return float(binary_calibration_error(mean.squeeze(1), part[1], bins))
        return float(multiclass_calibration_error(mean, part[1], self.classes, bins))

    def _mean(self, networks: Sequence[nn.Module], x: Tensor) -> Tensor:
        """The mean of the networks' probabilities in evaluation mode, ``(n, outputs)``."""
        of_each = [
            torch.cat([self.probabilities(network.eval()(rows)) for rows in x.split(AT_ONCE)]) for network in networks
        ]
        return torch.stack(of_each).mean(0)

    @torch.no_grad()
    def residuals(self, network: nn.Module) -> Tensor:
        """Targets minus predicted probabilities of the training samples, ``(n, outputs)``."""
        x, y = self.train
        truth = y.float().unsqueeze(1) if self.outputs == 1 else nn.functional.one_hot(y, self.classes).float()
        return truth - self.probabilities(network(x))
