"""The paper's partition for vision: inputs that the layer uses alike go to the same child."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from fpe_lightning.extras import require
from fpe_lightning.partitions.partition import Partition


@dataclass(frozen=True)
class Feature(Partition):
    """Inputs that the layer uses alike go to the same child; one partition serves all neurons of the layer.

    The rows of the Gram matrix ``W^T W`` of the inputs are clustered by k-means into ``4 * alpha`` clusters. Clusters
    go, largest first, to the child with the fewest inputs so far. A child with more than its share passes on the
    inputs of smallest norm.

    Example:
        >>> weight = torch.eye(2).repeat_interleave(4, dim=1).unsqueeze(-1)  # neuron 0 reads inputs 0-3, 1 reads 4-7
        >>> alive, generator = torch.ones(2, 8, dtype=torch.bool), torch.Generator().manual_seed(0)
        >>> halves = Feature()(weight, alive, 2, generator)[0].split(4)
        >>> [len(half.unique()) for half in halves]
        [1, 1]
    """

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        """See :class:`~fpe_lightning.partitions.partition.Partition`."""
        require("template", 'The partition "feature"', "scipy")
        from scipy.cluster.vq import kmeans2  # importing scipy takes longer than the rest of this package

        columns = weight.detach().double().cpu().movedim(1, 0).flatten(1)  # (inputs, neurons * k)
        gram = columns @ columns.T
        inputs = len(gram)
        seed = int(torch.randint(2**31, (), generator=generator))
        clusters = min(4 * alpha, len(np.unique(gram.numpy(), axis=0)))
        _, label = kmeans2(gram.numpy(), clusters, minit="++", seed=seed)
        child = np.empty(inputs, dtype=np.int64)
        load = np.zeros(alpha, dtype=np.int64)
        # Largest cluster first; ties go by the cluster's number.
        for cluster in sorted(range(clusters), key=lambda c: (-int((label == c).sum()), c)):
            lightest = int(load.argmin())
            child[label == cluster] = lightest
            load[lightest] += int((label == cluster).sum())
        _balance(child, load, columns.norm(dim=1).numpy())
        return torch.from_numpy(child).expand(alive.shape).clone()


def _balance(child: np.ndarray, load: np.ndarray, norm: np.ndarray) -> None:
    """Move inputs of smallest norm, in place, until no two children differ by more than one input."""
    while load.max() - load.min() > 1:
        giver, taker = int(load.argmax()), int(load.argmin())
        owned = np.flatnonzero(child == giver)
        child[owned[norm[owned].argmin()]] = taker
        load[giver] -= 1
        load[taker] += 1
