"""Partitions from data: inputs that interact go to the same child.

A split may separate inputs that matter together: the literals of a clause, or any pair whose product says
something about the target that the network does not know yet. With standardised inputs ``x`` and the residual
``r_c = y_c - p_c`` of each output, the affinity of two inputs is the size of ``E[r_c x_i x_j]`` over the outputs: the
gradient of the loss with respect to a product feature ``x_i x_j`` given to that output. No knowledge of the
features is needed, only training samples. It takes ``outputs * n * inputs^2`` multiplications: nothing for one output
and tens of inputs, minutes for a hundred classes and hundreds of inputs. There, a few random signs for the outputs
stand in for all of them: the square of ``sum_c s_c E[r_c x_i x_j]`` is, on average over signs, the sum of the squares.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor

from fpe_lightning.arguments import check_samples
from fpe_lightning.partitions.partition import Partition


def input_affinity(inputs: Tensor, residuals: Tensor, projections: int = 16, seed: int = 0) -> Tensor:
    """How much each pair of inputs matters together.

    Args:
        inputs: ``(n, inputs)``, training samples.
        residuals: ``(n, outputs)``, targets minus predicted probabilities; a column of ones gives the plain
            correlation of inputs, which knows no targets.
        projections: Where there are more outputs, that many sums of them with random signs take their place.
        seed: Of the signs.

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
    if r.shape[1] > projections:
        signs = torch.randint(0, 2, (r.shape[1], projections), generator=Generator().manual_seed(seed)) * 2 - 1
        r = r @ (signs.double() / projections**0.5)
    # The Gram matrix of the inputs, weighted by the residual of each output.
    squares = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    single = x.float()  # twice as fast, and exact enough for a finite sample
    for column in r.float().unbind(1):
        product = ((single * column.unsqueeze(1)).T @ single / len(x)).double()
        squares += ((product + product.T) / 2).square()  # rounding depends on the order of a sum
    return squares.sqrt().fill_diagonal_(0)


@dataclass(frozen=True)
class Affinity(Partition):
    """A balanced partition of the inputs of each neuron that keeps inputs of high affinity in the same child.

    Neurons that read the same inputs share it. From a random start, the exchange of two inputs that raises the
    affinity within children most is made until none does (Kernighan and Lin's local search); the best of several
    starts is kept. The call raises ValueError where the affinity has another size than the layer.

    Args:
        affinity: ``(inputs, inputs)``, symmetric and at least 0, such as :func:`input_affinity` gives.
        restarts: Number of random starts.

    Raises:
        ValueError: If the affinity is no finite symmetric square matrix.

    Example:
        >>> affinity = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
        >>> weight, generator = torch.randn(3, 4, 1), torch.Generator().manual_seed(0)
        >>> child = Affinity(affinity)(weight, torch.ones(3, 4, dtype=torch.bool), 2, generator)[0]
        >>> bool(child[0] == child[2]), bool(child[1] == child[3]), bool(child[0] == child[1])
        (True, True, False)
    """

    affinity: Tensor = field(repr=False, compare=False)
    restarts: int = 8

    def __post_init__(self) -> None:
        found = self.affinity
        square = found.dim() == 2 and found.shape[0] == found.shape[1]
        if not square or not bool(found.isfinite().all()) or not torch.allclose(found, found.T):
            raise ValueError(
                f"An affinity is a finite symmetric (inputs, inputs) matrix, found shape {tuple(found.shape)}."
            )

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        # The search exchanges single entries, which numpy does faster than torch.
        matrix = self.affinity.double().cpu().numpy()
        inputs = alive.shape[1]
        if len(matrix) != inputs:
            raise ValueError(f"The affinity is of {len(matrix)} inputs, but the layer has {inputs}.")
        sets, of_neuron = alive.unique(dim=0, return_inverse=True)  # the first split of a dense layer has one
        children = torch.zeros(sets.shape, dtype=torch.int64)
        for own, child in zip(sets, children, strict=True):
            # Only inputs that the neurons still read take part; the others stay with child 0, masked.
            read = own.nonzero().squeeze(1)
            within = matrix[np.ix_(read.numpy(), read.numpy())]
            child[read] = torch.from_numpy(_best_start(within, alpha, self.restarts, generator))
        return children[of_neuron]


@dataclass(frozen=True)
class Interaction(Partition):
    """Inputs whose product says something about the target go to the same child; see :func:`input_affinity`.

    The residuals are those of a network that knows the shares of the classes and nothing else, as an untrained or
    barely trained one does. It is meant for an early split of the layer that reads the samples. :meth:`fit` gives it
    the samples; ``expand(..., data=(x, y))`` and ``ExpansionCallback`` call that.

    Example:
        >>> x = torch.randn(512, 6, generator=torch.Generator().manual_seed(0)).sign()
        >>> target = (x[:, 0] * x[:, 3] > 0) | (x[:, 1] * x[:, 4] > 0)
        >>> partition = Interaction().fit(x, target)
        >>> alive = torch.ones(1, 6, dtype=torch.bool)
        >>> child = partition(torch.randn(1, 6, 1), alive, 2, Generator().manual_seed(0))[0]
        >>> bool(child[0] == child[3]), bool(child[1] == child[4])
        (True, True)
    """

    affinity: Affinity | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def fitted(self) -> bool:
        """Whether it has seen samples."""
        return self.affinity is not None

    def fit(self, x: Tensor, y: Tensor) -> Interaction:
        """Return a copy that is fitted to training samples.

        Args:
            x: ``(n, inputs)``, as the layer that is split reads them.
            y: ``(n,)`` bool or integer class numbers.

        Raises:
            ValueError: If a value is not finite, or the targets do not fit.
        """
        check_samples(x, y)
        truth = torch.nn.functional.one_hot(y.long()).double()
        few = x.shape[1] <= 64  # a search among many inputs takes a second, and starts hardly differ
        found = Interaction()
        object.__setattr__(
            found, "affinity", Affinity(input_affinity(x, truth - truth.mean(0)), restarts=8 if few else 1)
        )
        return found

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        if self.affinity is None:
            raise ValueError(
                "The partition Interaction needs training samples: call `Interaction().fit(x, y)`, or pass "
                "`data=(x, y)` to `expand`."
            )
        return self.affinity(weight, alive, alpha, generator)


def _best_start(affinity: np.ndarray, alpha: int, restarts: int, generator: Generator) -> np.ndarray:
    """The best of several random starts after exchanges."""
    count = len(affinity)
    best, highest = np.zeros(count, dtype=np.int64), -np.inf
    for _ in range(restarts):
        # Children of equal size to within one; exchanges keep the sizes.
        child = np.empty(count, dtype=np.int64)
        child[torch.randperm(count, generator=generator).numpy()] = np.arange(count) % alpha
        within = _exchange(child, affinity, alpha)
        if within > highest:
            best, highest = child, within
    return best


def _exchange(child: np.ndarray, affinity: np.ndarray, alpha: int) -> float:
    """Exchange inputs between children, in place, while the affinity within them grows; return the final affinity."""
    everyone = np.arange(len(child))
    tolerance = 1e-12 * max(float(affinity.sum()), 1e-300)
    pull = affinity @ (child[:, None] == np.arange(alpha))  # (inputs, children)
    while True:
        # What an input gains by going to each child, apart from what its partner takes away.
        move = pull - pull[everyone, child][:, None]
        # A few promising inputs first; all pairs only where no exchange among those helps.
        for chosen in (_promising(move, child), everyone):
            to = move[np.ix_(chosen, child[chosen])]  # i goes to the child of j
            # Both change places: their own affinity is counted in both gains, and stays between children.
            gain = to + to.T - 2 * affinity[np.ix_(chosen, chosen)]
            gain[child[chosen, None] == child[chosen]] = -np.inf
            best = np.unravel_index(int(gain.argmax()), gain.shape)
            if gain[best] > tolerance:
                break
        else:
            return float(pull[everyone, child].sum())
        first, second = chosen[best[0]], chosen[best[1]]
        # Update the sums of the two children that changed, in place of computing them again.
        change = affinity[:, second] - affinity[:, first]
        pull[:, child[first]] += change
        pull[:, child[second]] -= change
        child[[first, second]] = child[[second, first]]


def _promising(move: np.ndarray, child: np.ndarray, few: int = 8) -> np.ndarray:
    """For each two children the inputs that would gain most by going from one to the other."""
    found = []
    for each in range(move.shape[1]):
        own = np.flatnonzero(child == each)
        found.append(own[np.argsort(-move[own], axis=0, kind="stable")[:few]].ravel())
    return np.unique(np.concatenate(found))
