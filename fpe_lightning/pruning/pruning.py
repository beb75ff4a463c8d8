"""A pruning rule says which weights go, so that the number of non-zeros stays the same.

:class:`~fpe_lightning.pruning.magnitude.Magnitude` is the family of rules that compare magnitudes. Any other object
with a method ``keep`` is a rule too: a pure function of tensors. Only ``expand`` applies rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from fpe_lightning.pruning.magnitude import Magnitude
from fpe_lightning.registry import Registry

PruningName: TypeAlias = Literal["total", "incoming", "outgoing", "global", "columns"]
"""Short names of the rules that need no argument."""


@dataclass(frozen=True)
class SiteWeights:
    """The weights of one site whose neurons are split already.

    Attributes:
        incoming: For each producer ``(children, inputs, k)``, its weights; ``k`` are kernel entries, 1 for linear
            layers.
        incoming_masks: Bool of the same shapes: True where a weight may be non-zero.
        outgoing: For each consumer ``(outputs, children, k)``.
        outgoing_masks: Bool of the same shapes.
        biases: For each producer ``(children,)``, or None where it has none.
        outgoing_biases: For each consumer ``(outputs,)``, or None.
        between: Names of other tensors with a value for each child, such as those of norms.
    """

    incoming: Sequence[Tensor]
    incoming_masks: Sequence[Tensor]
    outgoing: Sequence[Tensor]
    outgoing_masks: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    outgoing_biases: Sequence[Tensor | None]
    between: Sequence[str] = ()


@runtime_checkable
class PruningRule(Protocol):
    """Which weights of a site go."""

    def keep(self, weights: SiteWeights, excess: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Choose the weights that stay.

        Args:
            weights: The weights of the site, on the CPU.
            excess: How many of them have to go.

        Returns:
            New masks for the incoming and for the outgoing weights, bool of the shapes of the old ones, with
            ``excess`` fewer entries altogether.
        """


@runtime_checkable
class FinalizingRule(PruningRule, Protocol):
    """A rule that also changes values, after the last mask is known."""

    def finalize(self, weights: SiteWeights) -> SiteWeights:
        """Return new values under the new masks; no shape changes."""


Pruning: TypeAlias = Magnitude | PruningRule

_RULES = Registry[Pruning]("pruning rule")


def register_pruning(name: str, rule: Pruning) -> None:
    """Give a pruning rule a short name, for ``Expansion(prune=name)`` in Python and in YAML.

    Args:
        name: A name that no other rule has.
        rule: A :class:`~fpe_lightning.pruning.magnitude.Magnitude`, or an object with a method ``keep`` as
            :class:`PruningRule` has.

    Raises:
        ValueError: If the name is taken, or the object is no rule.

    Example:
        >>> register_pruning("total", Magnitude())
        Traceback (most recent call last):
        ...
        ValueError: The pruning rule 'total' is registered already; choose another name.
    """
    _RULES.register(name, resolve_pruning(rule))


def resolve_pruning(rule: str | Pruning) -> Pruning:
    """The rule that a short name stands for; a rule is returned as it is.

    Raises:
        ValueError: If the name is unknown, or the object is no rule.

    Example:
        >>> resolve_pruning("incoming")
        Magnitude(side='incoming', scope='site', granularity='weight')
    """
    if isinstance(rule, str):
        return _RULES.get(rule)
    if isinstance(rule, type) or not isinstance(rule, Magnitude | PruningRule):
        raise ValueError(
            f"A pruning rule is a short name ({', '.join(sorted(_RULES))}), a Magnitude, or an object with a method "
            f"`keep(weights, excess)`; found {rule!r}."
        )
    return rule


register_pruning("total", Magnitude())
register_pruning("incoming", Magnitude(side="incoming"))
register_pruning("outgoing", Magnitude(side="outgoing"))
register_pruning("global", Magnitude(side="incoming", scope="model"))
register_pruning("columns", Magnitude(side="incoming", granularity="column"))
