"""Two splits that are ahead of wide-sparse networks in few neurons, as callbacks ready for a Trainer."""

from __future__ import annotations

from fpe_lightning.callbacks.expansion import ExpansionCallback
from fpe_lightning.callbacks.lightnings import MisconfigurationException
from fpe_lightning.expansion import Expansion
from fpe_lightning.partitions import Interaction
from fpe_lightning.pruning import DiscriminantRefit


def two_splits(
    alpha: int = 2,
    early: float = 0.04,
    again: float = 0.2,
    sites: str | list[str] | None = None,
    seed: int = 0,
) -> list[ExpansionCallback]:
    """The recipe of ``docs/results/open_problem.md``: split early by interaction, then once more with a refit.

    The first split keeps inputs together whose product correlates with the targets
    (:class:`~fpe_lightning.partitions.interaction.Interaction`), and incoming weights are pruned. The second one splits
    every child in two by the same rule, fits the classifier to the children in closed form
    (:class:`~fpe_lightning.pruning.discriminant.DiscriminantRefit`), and resets the optimizer state of split
    parameters. Both take training samples from the datamodule or from the first training batches. The network has one
    hidden layer and a classifier behind it. ``configs/recipes/two_splits.yaml`` is the same recipe.

    In the study it is 8 to 11 points above wide and sparse networks of as many non-zeros in three settings of four and
    0.9 in the fourth. There, partitions follow the residual of the network as it is at the split, here the targets.

    Args:
        alpha: Children of each neuron at the first split: two on formulas, three on embeddings, in the study.
        early: Share of the run after which to split.
        again: Share of the run after which to split once more, in two.
        sites: Names or globs of the sites to split; None for all.
        seed: Of both splits.

    Returns:
        Two callbacks, for ``Trainer(callbacks=[...])``.

    Raises:
        MisconfigurationException: If the second split is not after the first, or the callback refuses a value.

    Example:
        >>> [(callback.expansion.alpha, callback.schedule.moments) for callback in two_splits(alpha=3)]
        [(3, [0.04]), (2, [0.2])]
    """
    if not early < again:
        raise MisconfigurationException(f"`again` has to be later than `early`, found {again} and {early}.")
    try:
        first = Expansion(alpha=alpha, partition=Interaction(), prune="incoming", seed=seed)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
    second = Expansion(partition=Interaction(), prune=DiscriminantRefit(), optimizer_state="reset", seed=seed)
    return [
        ExpansionCallback(first, fraction=early, sites=sites),
        ExpansionCallback(second, fraction=again, sites=sites),
    ]
