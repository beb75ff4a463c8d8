"""Partitions from data: inputs that interact go to the same child.

What a split may tear apart is inputs that matter together: the literals of a clause, or any pair whose product says
something about the target that the network does not know yet. With standardised inputs ``x`` and the residual
``r_c = y_c - p_c`` of each output, the affinity of two inputs is the size of ``E[r_c x_i x_j]`` over the outputs: the
gradient of the loss with respect to a product feature ``x_i x_j`` given to that output. No knowledge of the
features is needed, only training samples. It takes ``outputs * n * inputs^2`` multiplications: nothing for one output
and tens of inputs, minutes for a hundred classes and hundreds of inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from fpe_lightning.expansion.partition import Partition


def input_affinity(inputs: Tensor, residuals: Tensor) -> Tensor:
    """How much each pair of inputs matters together.

    Args:
        inputs: ``(n, inputs)``, training samples.
        residuals: ``(n, outputs)``, targets minus predicted probabilities; a column of ones gives the plain
            correlation of inputs, which knows no targets.

    Returns:
        ``(inputs, inputs)`` float64, symmetric and at least 0, with a zero diagonal.

    Raises:
        ValueError: If the numbers of samples differ or a value is not finite.

    Example:
        >>> inputs = torch.tensor([[1.0, 1, 1], [1, -1, 1], [-1, 1, 1], [-1, -1, -1]])
        >>> target = inputs[:, :1] * inputs[:, 1:2]
        >>> input_affinity(inputs, target)[0]
        tensor([0.0000, 1.0000, 0.5774], dtype=torch.float64)
    """
    if len(inputs) != len(residuals):
        raise ValueError(f"{len(inputs)} samples of inputs do not fit {len(residuals)} rows of residuals.")
    x, r = inputs.double(), residuals.double()
    if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(r).all())):
        raise ValueError("Inputs or residuals hold NaN or infinity: there is no affinity to find.")
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-12)
    squares = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for column in r.unbind(1):
        squares += ((x * column.unsqueeze(1)).T @ x / len(x)).square()
    return squares.sqrt().fill_diagonal_(0)


def affinity_partition(affinity: Tensor, restarts: int = 8) -> Partition:
    """One balanced partition for all neurons that keeps inputs of high affinity in the same child.

    From a random deal, the exchange of two inputs that raises the affinity within children most is made until none
    does (Kernighan and Lin's local search); the best of several deals stays.

    Args:
        affinity: ``(inputs, inputs)``, symmetric and at least 0, such as :func:`input_affinity` gives.
        restarts: Number of deals.

    Returns:
        A partition for :func:`~fpe_lightning.expansion.expand.expand`.

    Raises:
        ValueError: If the affinity is no finite symmetric square matrix; the partition raises where its size does not
            fit the layer.

    Example:
        >>> affinity = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
        >>> weight, generator = torch.randn(3, 4, 1), torch.Generator().manual_seed(0)
        >>> child = affinity_partition(affinity)(weight, torch.ones(3, 4, dtype=torch.bool), 2, generator)[0]
        >>> bool(child[0] == child[2]), bool(child[1] == child[3]), bool(child[0] == child[1])
        (True, True, False)
    """
    matrix = affinity.double().cpu().numpy()
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise ValueError(
            f"An affinity is a finite symmetric (inputs, inputs) matrix, found shape {tuple(affinity.shape)}."
        )

    def partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        inputs = alive.shape[1]
        if len(matrix) != inputs:
            raise ValueError(f"The affinity is of {len(matrix)} inputs, but the layer has {inputs}.")
        best, highest = np.zeros(inputs, dtype=np.int64), -np.inf
        for _ in range(restarts):
            child = np.empty(inputs, dtype=np.int64)
            child[torch.randperm(inputs, generator=generator).numpy()] = np.arange(inputs) % alpha
            within = _exchange(child, matrix, alpha)
            if within > highest:
                best, highest = child, within
        return torch.from_numpy(best).expand(alive.shape).clone()

    return partition


def _exchange(child: np.ndarray, affinity: np.ndarray, alpha: int) -> float:
    """Exchange inputs between children, in place, while the affinity within them grows; return what it is then."""
    everyone = np.arange(len(child))
    tolerance = 1e-12 * max(float(affinity.sum()), 1e-300)
    while True:
        pull = affinity @ (child[:, None] == np.arange(alpha))  # (inputs, children)
        moved = pull[:, child] - pull[everyone, child][:, None]  # i goes to the child of j
        gain = moved + moved.T - 2 * affinity
        gain[child[:, None] == child] = -np.inf
        first, second = np.unravel_index(int(gain.argmax()), gain.shape)
        if not gain[first, second] > tolerance:
            return float(pull[everyone, child].sum())
        child[[first, second]] = child[[second, first]]
