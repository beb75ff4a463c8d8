"""Two splits that are ahead of static wide-sparse networks on formulas, as callbacks ready for a Trainer."""

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
    inputs: int | None = None,
    outputs: int | None = None,
) -> list[ExpansionCallback]:
    """The recipe of ``docs/results/open_problem.md``: split early by interaction, then once more with a refit.

    The first split keeps inputs together whose product correlates with the targets
    (:class:`~fpe_lightning.partitions.interaction.Interaction`), and incoming weights are pruned. The second one splits
    every child in two by the same rule, fits the classifier to the children in closed form
    (:class:`~fpe_lightning.pruning.discriminant.DiscriminantRefit`), and resets the optimizer state of split
    parameters. Both take training samples from the datamodule or from the first training batches. The network has one
    hidden layer and a classifier behind it. ``configs/recipes/two_splits.yaml`` is the same recipe.

    Use it on formulas, where one output depends on few inputs together: there it is 8 points above wide and sparse
    networks of as many non-zeros. With several classes it pays with one or two neurons on embeddings of hundreds of
    inputs, and it loses on pixels and from four neurons on; rewiring is better there. In the study, partitions follow
    the residual of the network as it is at the split, here the targets.

    Args:
        alpha: Children of each neuron at the first split: two on formulas, three on embeddings, in the study.
        early: Share of the run after which to split.
        again: Share of the run after which to split once more, in two.
        sites: Names or globs of the sites to split; None for all.
        seed: Of both splits.
        inputs: Of the network, to check here that the copies fit; None leaves it to the splits.
        outputs: Of the network, where ``inputs`` are given.

    Returns:
        Two callbacks, for ``Trainer(callbacks=[...])``.

    Raises:
        MisconfigurationException: If the second split is not after the first, the network has too few inputs for the
            copies of its outgoing weights, or the callback refuses a value.

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
    if inputs is not None and outputs is not None:
        _check_room(alpha, inputs, outputs)
    second = Expansion(partition=Interaction(), prune=DiscriminantRefit(), optimizer_state="reset", seed=seed)
    return [
        ExpansionCallback(first, fraction=early, sites=sites),
        ExpansionCallback(second, fraction=again, sites=sites),
    ]


def _check_room(alpha: int, inputs: int, outputs: int) -> None:
    """Check that each child keeps an input after both splits.

    Raises:
        MisconfigurationException: If it does not.
    """
    copies = outputs + 1
    pruned = (alpha - 1) * copies  # by the first split, of the incoming weights of a neuron
    excess = alpha * copies  # the second one adds as many for each neuron, and half of them are outgoing weights
    pruned += excess - min(excess // 2, 2 * alpha * (outputs - 1))
    if inputs - pruned < 2 * alpha:
        raise MisconfigurationException(
            f"Two splits, by {alpha} and by 2, prune {pruned} of the {inputs} incoming weights of a neuron to pay for "
            f"copies of {outputs} outgoing ones, and {2 * alpha} children need an input each. Use a smaller `alpha`, "
            "or rewire a sparse network instead."
        )
