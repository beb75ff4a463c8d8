"""Two splits that beat wide-sparse networks at equal non-zeros, as callbacks ready for a Trainer."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from fpe_lightning.callbacks.expansion import ExpansionCallback
from fpe_lightning.partitions.interaction import interaction_partition
from fpe_lightning.pruning.discriminant import DiscriminantRefit


def two_splits(
    inputs: Tensor,
    targets: Tensor,
    alpha: int = 2,
    early: float = 0.04,
    again: float = 0.2,
    sites: str | list[str] | None = None,
    seed: int = 0,
) -> list[ExpansionCallback]:
    """The recipe of ``docs/results/open_problem.md``: split early by interaction, then once more with a refit.

    The first split keeps inputs together whose product correlates with the targets
    (:func:`~fpe_lightning.partitions.interaction.interaction_partition`), and incoming weights make room. The second
    one splits every child in two by the same rule, fits the classifier anew to the children in closed form
    (:class:`~fpe_lightning.pruning.discriminant.DiscriminantRefit`), and resets the optimizer state of what was split.
    It needs training samples and their classes, and no knowledge of what the inputs mean; and a network of one hidden
    layer with a classifier behind it.

    In the study it is 8 to 11 points above wide and sparse networks of as many non-zeros in three settings of four and
    0.9 in the fourth. There, partitions follow the residual of the network as it is at the split, here the targets.

    Args:
        inputs: ``(n, inputs)``, training samples as the hidden layer sees them.
        targets: ``(n,)`` bool or integer class numbers.
        alpha: Children of each neuron at the first split: two on formulas, three on embeddings, in the study.
        early: Share of the run after which to split.
        again: Share of the run after which to split once more, in two.
        sites: See :class:`~fpe_lightning.callbacks.expansion.ExpansionCallback`, as for the one that follows.
        seed: Of both splits.

    Returns:
        Two callbacks, for ``Trainer(callbacks=[...])``.

    Raises:
        MisconfigurationException: If the second split is not after the first, or the callback refuses a value.
        ValueError: If inputs and targets do not fit.

    Example:
        >>> import torch
        >>> x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)).sign()
        >>> callbacks = two_splits(x, x[:, 0] * x[:, 1] > 0)
        >>> [(callback.alpha, callback.schedule.moments) for callback in callbacks]
        [(2, [0.04]), (2, [0.2])]
    """
    if not early < again:
        raise MisconfigurationException(f"`again` has to be later than `early`, found {again} and {early}.")
    partition = interaction_partition(inputs, targets)
    return [
        ExpansionCallback(alpha, fraction=early, partition=partition, budget="incoming", sites=sites, seed=seed),
        ExpansionCallback(
            2,
            fraction=again,
            partition=partition,
            budget=DiscriminantRefit(inputs, targets),
            optimizer_state="reset",
            sites=sites,
            seed=seed,
        ),
    ]
