"""Which child inherits which input of its parent.

A partition is a function ``(weight, alive, alpha, generator) -> assignment``:

- ``weight``: floating ``(neurons, inputs, k)``, the incoming weights of every neuron; ``k`` is 1 for a linear layer and
  the number of kernel entries for a convolution, whose neurons and inputs are channels.
- ``alive``: bool ``(neurons, inputs)``, False where the whole weight is masked already.
- ``alpha``: number of children of each neuron.
- ``generator``: the only source of randomness.
- ``assignment``: int64 ``(neurons, inputs)``, the child ``0 .. alpha - 1`` that inherits each input. A bool tensor
  ``(neurons, alpha, inputs)`` is accepted as well, for rules that are no partition, such as the overlapping control.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Generator, Tensor

from fpe_lightning.partitions.balanced import deal
from fpe_lightning.partitions.shared import by_groups

Partition = Callable[[Tensor, Tensor, int, Generator], Tensor]
Groups = Sequence[Sequence[int]]


def random_partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """Each neuron draws its own random partition, balanced to within one input (the paper's rule).

    Example:
        >>> weight, generator = torch.randn(3, 8, 1), torch.Generator().manual_seed(0)
        >>> random_partition(weight, torch.ones(3, 8, dtype=torch.bool), 2, generator).sum(1)
        tensor([4, 4, 4])
    """
    return deal(torch.rand(alive.shape, generator=generator), alive, alpha)


def feature_partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """Inputs that the layer uses alike go to the same child (the paper's rule for vision).

    The rows of the Gram matrix ``W^T W`` of the inputs are clustered by k-means into ``4 * alpha`` groups; the groups
    go, largest first, to the child with the fewest inputs so far; a child that ends with more than its share hands over
    the inputs of smallest norm. One partition serves all neurons of the layer.

    Example:
        >>> weight = torch.eye(2).repeat_interleave(4, dim=1).unsqueeze(-1)  # neuron 0 reads inputs 0-3, 1 reads 4-7
        >>> alive, generator = torch.ones(2, 8, dtype=torch.bool), torch.Generator().manual_seed(0)
        >>> halves = feature_partition(weight, alive, 2, generator)[0].split(4)
        >>> [len(half.unique()) for half in halves]
        [1, 1]
    """
    columns = weight.detach().double().cpu().movedim(1, 0).flatten(1)  # (inputs, neurons * k)
    gram = columns @ columns.T
    inputs = len(gram)
    seed = int(torch.randint(2**31, (), generator=generator))
    clusters = min(4 * alpha, len(np.unique(gram.numpy(), axis=0)))
    _, label = kmeans2(gram.numpy(), clusters, minit="++", seed=seed)
    child = np.empty(inputs, dtype=np.int64)
    load = np.zeros(alpha, dtype=np.int64)
    for cluster in sorted(range(clusters), key=lambda c: (-int((label == c).sum()), c)):
        lightest = int(load.argmin())
        child[label == cluster] = lightest
        load[lightest] += int((label == cluster).sum())
    _balance(child, load, columns.norm(dim=1).numpy())
    return torch.from_numpy(child).expand(alive.shape).clone()


def _balance(child: np.ndarray, load: np.ndarray, norm: np.ndarray) -> None:
    """Hand over inputs of smallest norm, in place, until no two children differ by more than one input."""
    while load.max() - load.min() > 1:
        giver, taker = int(load.argmax()), int(load.argmin())
        owned = np.flatnonzero(child == giver)
        child[owned[norm[owned].argmin()]] = taker
        load[giver] -= 1
        load[taker] += 1


def semi_structured_partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """Each run of 4 consecutive inputs is split 2 + 2, so that adjacent children form 2:4 tiles in both directions.

    Raises:
        ValueError: If ``alpha`` is not 2, or the number of inputs is not a multiple of 4.

    Example:
        >>> weight, generator = torch.randn(3, 8, 1), torch.Generator().manual_seed(0)
        >>> semi_structured_partition(weight, torch.ones(3, 8, dtype=torch.bool), 2, generator).view(3, 2, 4).sum(-1)
        tensor([[2, 2],
                [2, 2],
                [2, 2]])
    """
    neurons, inputs = alive.shape
    if alpha != 2 or inputs % 4:
        raise ValueError(
            'The partition "semi_structured" splits each run of 4 inputs 2 + 2: it needs alpha=2 and a multiple of 4 '
            f'inputs, found alpha={alpha} and {inputs} inputs; use "random" or "shared" here.'
        )
    keys = torch.rand(neurons * inputs // 4, 4, generator=generator)
    return deal(keys, torch.ones_like(keys, dtype=torch.bool), 2).view(neurons, inputs)


def overlapping_masks(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """The paper's control: every child draws its inputs on its own, so that children share some and miss others.

    Returns:
        Bool ``(neurons, alpha, inputs)`` with exactly as many entries per neuron as a partition has.

    Example:
        >>> weight, generator = torch.randn(3, 8, 1), torch.Generator().manual_seed(0)
        >>> overlapping_masks(weight, torch.ones(3, 8, dtype=torch.bool), 2, generator).sum((1, 2))
        tensor([8, 8, 8])
    """
    draws = [random_partition(weight, alive, alpha, generator) == child for child in range(alpha)]
    return torch.stack(draws, dim=1) & alive.unsqueeze(1)


def clause_partition(groups: Groups) -> Partition:
    """All inputs of one group (the literals of a clause) go to the same child; one partition for all neurons.

    Groups are dealt in random order, so that children get the same number of groups to within one.

    Args:
        groups: Lists of input indices, one a clause, that together hold every input exactly once.

    Returns:
        A partition; it raises ValueError where the groups overlap, miss an input, or are fewer than the children.

    Example:
        >>> weight, generator = torch.randn(3, 4, 1), torch.Generator().manual_seed(0)
        >>> assignment = clause_partition([[0, 3], [1, 2]])(weight, torch.ones(3, 4, dtype=torch.bool), 2, generator)
        >>> bool(assignment[0, 0] == assignment[0, 3]), bool(assignment[0, 0] == assignment[0, 1])
        (True, False)
    """

    def partition(weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
        inputs = alive.shape[1]
        named = np.concatenate([np.asarray(group) for group in groups])
        if not np.issubdtype(named.dtype, np.integer):
            raise ValueError(f"`groups` hold {named.dtype} numbers; name inputs by integers, 0 to {inputs - 1}.")
        outside = named[(named < 0) | (named >= inputs)]
        if len(outside):
            raise ValueError(f"`groups` name input {outside[0]}, but the layer has inputs 0 to {inputs - 1}.")
        counts = np.bincount(named, minlength=inputs)
        if (counts > 1).any():
            raise ValueError(
                f"`groups` overlap: input {int(counts.argmax())} is in {int(counts.max())} of them; put each in one."
            )
        if (counts == 0).any():
            raise ValueError(
                f"`groups` miss {int((counts == 0).sum())} of {inputs} inputs, the first is {int(counts.argmin())}; "
                "put every input in one group."
            )
        if len(groups) < alpha:
            raise ValueError(f"{len(groups)} groups cannot be dealt to alpha={alpha} children; use a smaller alpha.")
        child = torch.empty(inputs, dtype=torch.int64)
        for position, group in enumerate(torch.randperm(len(groups), generator=generator).tolist()):
            child[list(groups[group])] = position % alpha
        return child.expand(alive.shape).clone()

    return partition


PARTITIONS: dict[str, Partition] = {
    "random": random_partition,
    "shared": by_groups("shared:1"),
    "feature": feature_partition,
    "contiguous": by_groups("contiguous:1"),
    "semi_structured": semi_structured_partition,
    "overlapping": overlapping_masks,
}
"""Partitions by name. ``"shared:8"`` and ``"contiguous:8"`` are made for groups of neurons on the spot (see
:mod:`fpe_lightning.partitions.shared`); "clause" goes through :func:`clause_partition`.
"""


def resolve_partition(partition: str | Partition, groups: Groups | None = None) -> Partition:
    """Look a partition up by name.

    Args:
        partition: One of :data:`PARTITIONS`, ``"shared:<n>"`` or ``"contiguous:<n>"`` for ``n`` groups of neurons,
            ``"clause"``, or a callable of the signature in the module's docstring.
        groups: For ``"clause"``: lists of input indices, one a clause.

    Raises:
        ValueError: If the name is unknown, or groups are missing or not used.

    Example:
        >>> resolve_partition("random") is random_partition
        True
    """
    if groups is not None and partition != "clause":
        raise ValueError(
            f'`groups` are used by partition="clause" alone, found partition={partition!r}; drop one of them.'
        )
    if callable(partition):
        return partition
    if partition == "clause":
        if not groups or not all(len(group) for group in groups):
            raise ValueError(
                'partition="clause" needs `groups`, a list of non-empty lists of input indices, one a clause.'
            )
        return clause_partition(groups)
    if isinstance(partition, str) and partition.partition(":")[0] in ("shared", "contiguous") and ":" in partition:
        return by_groups(partition)
    if partition not in PARTITIONS:
        names = sorted([*PARTITIONS, "clause"])
        nearest = difflib.get_close_matches(str(partition), names, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"Unknown partition {partition!r}.{hint} Known: {', '.join(names)}, or a callable.")
    return PARTITIONS[partition]


def children_masks(partition: Partition, weight: Tensor, alive: Tensor, alpha: int, generator: Generator) -> Tensor:
    """Run a partition and check what it returns.

    Returns:
        Bool ``(neurons, alpha, inputs)``: the inputs that each child inherits.

    Raises:
        ValueError: If a partition of the caller's own returned something else.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> weight, alive = torch.randn(3, 8, 1), torch.ones(3, 8, dtype=torch.bool)
        >>> masks = children_masks(random_partition, weight, alive, 2, generator)
        >>> masks.shape, bool((masks.sum(1) == 1).all())
        (torch.Size([3, 2, 8]), True)
    """
    found: object = partition(weight, alive, alpha, generator)
    neurons, inputs = alive.shape
    what = type(found).__name__
    if isinstance(found, Tensor):
        found = found.cpu()
        what = f"{found.dtype} {tuple(found.shape)}"
        if found.dtype == torch.bool and found.shape == (neurons, alpha, inputs):
            return found & alive.unsqueeze(1)
        if found.dtype == torch.int64 and found.shape == alive.shape:
            if bool(((found >= 0) & (found < alpha)).all()):
                return (found.unsqueeze(1) == torch.arange(alpha).view(1, -1, 1)) & alive.unsqueeze(1)
            what += f" with values {int(found.min())} to {int(found.max())}"
    raise ValueError(
        f"A partition has to return int64 ({neurons}, {inputs}) with children 0 to {alpha - 1}, or bool "
        f"({neurons}, {alpha}, {inputs}); found {what}."
    )
