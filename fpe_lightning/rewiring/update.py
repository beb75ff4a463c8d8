"""One update of the masks: drop the smallest weights, grow as many others, and keep their number exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from fpe_lightning.rewiring.choose import largest, smallest
from fpe_lightning.rewiring.follow import apply_move, copies_of_weights
from fpe_lightning.rewiring.gradients import GradientSum
from fpe_lightning.rewiring.report import RewireReport
from fpe_lightning.rewiring.weights import Weight, is_dense, movable_weights
from fpe_lightning.sparse.model_masks import count_nonzeros
from fpe_lightning.sparse.moves import Growth

METHODS = {"rigl": "gradient", "set": "random"}
"""Names of methods, each with the growth that it stands for."""
GROWTHS = ("gradient", "momentum", "random")
SCOPES = ("layer", "model")

Gradients = Mapping[str, Tensor] | Mapping[str, GradientSum]


def rewire(
    model: nn.Module,
    gradients: Gradients | None = None,
    *,
    method: str = "rigl",
    fraction: float = 0.3,
    growth: str | None = None,
    scope: str = "layer",
    layers: str | Sequence[str] | None = None,
    optimizer: Any = None,
    averages: Iterable[Any] = (),
    seed: int = 0,
) -> RewireReport:
    """Move masked weights once: drop those of smallest magnitude, and grow as many where the gradient is largest.

    ``method="rigl"`` is the update of RigL (Evci et al., ICML 2020), ``method="set"`` that of SET (Mocanu et al.,
    2018). Grown weights begin at zero, as do the moments and gradients of all weights that moved. An entry that is
    dropped does not grow again in the same update. Folded weights stay folded: a place (parent, input) goes to at most
    one child, and a weight may move to a sibling. Ties go to the lowest index, and to the first layer.

    A grown weight is zero until the next optimizer step. :func:`~fpe_lightning.count_nonzeros` counts the entries that
    may be non-zero, so it is the same before and after the update, while fewer entries differ from zero for one step.

    Args:
        model: A module with masked weights, changed in place.
        gradients: For each weight by its qualified name (``"0.weight"``) the gradient of the dense weight, in its
            shape, or the sums of :func:`~fpe_lightning.rewiring.gradients.dense_gradients`. A weight without one
            stays as it is. Random growth needs none.
        method: ``"rigl"`` grows by gradient, ``"set"`` at random.
        fraction: Share of the weights of each layer that is dropped, in (0, 1); rounded down.
        growth: ``"gradient"``, ``"random"``, or ``"momentum"`` where ``gradients`` holds averages over time; None
            leaves it to the method.
        scope: ``"layer"`` keeps the number of each layer; ``"model"`` grows where the gradient is largest over all
            layers, which keeps the sum. The classifier then takes part, with a mask from now on if it had none.
        layers: Names or globs of layers; None for all masked ones.
        optimizer: One or several optimizers, whose state follows.
        averages: Copies of the model whose masks follow: modules (EMA), names of parts of the model, or objects that
            average tensors. Teachers inside of the model are found without a name.
        seed: Of random growth.

    Returns:
        What moved.

    Raises:
        ValueError: If an argument is out of range, a name is not known, nothing is masked, or a gradient has another
            shape than its weight. Nothing changes in that case.

    Example:
        >>> import fpe_lightning as fpe
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = fpe.sparsify(model, density=0.5)
        >>> with fpe.rewiring.dense_gradients(model) as gradients:
        ...     model(torch.ones(1, 8)).sum().backward()
        >>> report = fpe.rewire(model, gradients)
        >>> report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
        True
    """
    growth = check_arguments(method, fraction, growth, scope)
    weights, left_out = movable_weights(model, layers, optimizer, dense=scope == "model")
    if all(is_dense(weight) for weight in weights):
        raise ValueError(nothing_masked(left_out))
    _check_names(gradients, weights)
    generator = Generator().manual_seed(seed)
    plans = [_Plan(weight, fraction) for weight in weights]
    for plan in plans:
        plan.growth = _growth_of(plan.weight, gradients, growth, generator)
    plans = [plan for plan in plans if plan.growth is not None]
    for together in [[plan] for plan in plans] if scope == "layer" else [plans]:
        _choose(together)
    copies = copies_of_weights(model, optimizer, averages, weights)
    before = count_nonzeros(model)
    for plan in plans:
        apply_move(plan.weight, plan.dropped, plan.grown, plan.growth, optimizer, copies)
    return RewireReport(
        nonzeros_before=before,
        nonzeros_after=count_nonzeros(model),
        held={weight.name: int(weight.held.sum()) for weight in weights},
        dropped={weight.name: 0 for weight in weights} | {p.weight.name: int(p.dropped.sum()) for p in plans},
        grown={weight.name: 0 for weight in weights} | {p.weight.name: int(p.grown.sum()) for p in plans},
        left_out=left_out,
    )


def check_arguments(method: str, fraction: float, growth: str | None, scope: str) -> str:
    """The growth that a method and ``growth`` stand for.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> check_arguments("set", 0.3, None, "layer")
        'random'
    """
    for name, value, known in (("method", method, tuple(METHODS)), ("scope", scope, SCOPES)):
        if value not in known:
            raise ValueError(f"`{name}` is one of {', '.join(map(repr, known))}; found {value!r}.")
    if growth is not None and growth not in GROWTHS:
        raise ValueError(f"`growth` is one of {', '.join(map(repr, GROWTHS))}; found {growth!r}.")
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ValueError(f"`fraction` is a share of the weights, between 0 and 1; found {fraction!r}.")
    return growth or METHODS[method]


def nothing_masked(left_out: Mapping[str, str]) -> str:
    """The message where no weight can be rewired.

    Example:
        >>> nothing_masked({}).split(":")[0]
        'There is nothing to rewire'
    """
    why = "; ".join(f"`{name}` stays as {reason}" for name, reason in left_out.items()) or "no weight has a mask"
    return (
        f"There is nothing to rewire: {why}. Split the model (`fpe.expand`, `ExpansionCallback`) or start wide and "
        "sparse (`fpe.sparsify(model, density)`)."
    )


class _Plan:
    """The entries of one weight that are going to move."""

    def __init__(self, weight: Weight, fraction: float) -> None:
        self.weight = weight
        self.held = weight.held
        self.number = int(fraction * int(self.held.sum()))
        self.dropped = self.grown = torch.zeros_like(self.held)
        self.growth: Growth | None = None

    def drop(self, number: int) -> Tensor:
        """Drop the smallest weights; returns the places that may get a new one."""
        assert self.growth is not None
        self.number = number
        [self.dropped] = smallest([self.weight.parameter.detach()], [self.held], number)
        return (~self.held | self.dropped) & (self.growth.score >= 0)


def _choose(plans: Sequence[_Plan]) -> None:
    """Choose as many entries to grow as to drop, over all of some weights together."""
    free = [plan.drop(plan.number) for plan in plans]
    while (count := sum(plan.number for plan in plans)) > (space := sum(int(each.sum()) for each in free)):
        # Nearly dense: drop fewer, in the same proportions and never more than there is a place for.
        free = [plan.drop(plan.number * space // count) for plan in plans]
    scores = [plan.growth.score for plan in plans if plan.growth is not None]
    device = scores[0].device if scores else None
    grown = largest([each.to(device) for each in scores], [each.to(device) for each in free], count) if scores else []
    for plan, each in zip(plans, grown, strict=True):
        plan.grown = each.to(plan.held.device)


def _growth_of(weight: Weight, gradients: Gradients | None, growth: str, generator: Generator) -> Growth | None:
    """The scores of a weight's places; None where it has no gradient, so that it stays as it is."""
    moves, where = weight.moves, (weight.module, weight.key)
    if growth == "random":
        parts = []
        for rows in moves.rows(*where, most=len(weight.parameter)):
            shape = (rows.stop - rows.start, *moves.dense_shape(*where)[1:])
            drawn = torch.rand(shape, generator=generator).to(weight.parameter.device)
            parts.append(moves.growth(*where, drawn, rows))
        return Growth.joined(parts)
    given = (gradients or {}).get(weight.name)
    if isinstance(given, GradientSum):
        found = given.growth()
    elif given is not None:
        dense = given.detach().to(weight.parameter.device)
        parts = [moves.growth(*where, dense[rows], rows) for rows in moves.rows(*where, most=len(weight.parameter))]
        found = Growth.joined(parts) if bool(dense.isfinite().all()) else None
    else:
        found = None
    if found is None and bool(weight.held.all()):  # a dense weight only gives
        return Growth(torch.full(weight.held.shape, -1.0, device=weight.parameter.device))
    return found


def _check_names(gradients: Gradients | None, weights: Sequence[Weight]) -> None:
    for weight in weights:
        given = (gradients or {}).get(weight.name)
        shape = weight.moves.dense_shape(weight.module, weight.key)
        if isinstance(given, Tensor) and given.shape != shape:
            raise ValueError(
                f"The gradient of `{weight.name}` has shape {tuple(given.shape)}, and the dense weight has "
                f"{tuple(shape)}; give the gradient of the dense weight, as `fpe.rewiring.dense_gradients` sums it."
            )
