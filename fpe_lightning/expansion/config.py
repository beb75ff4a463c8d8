"""How to expand: one typed object, documented here and taken everywhere.

``expand``, ``ExpansionCallback``, ``expand_checkpoint``, the FPE networks and the studies take the same object:

- :class:`Paper`: the paper's rule, whose values are the defaults of :class:`Expansion`;
- :class:`Blocks`: partitions that groups of neurons share, stored and computed at the size of the non-zeros;
- :class:`SemiStructured`: the 2:4 pattern, for the kernels of GPUs;
- :class:`~fpe_lightning.expansion.by_shape.ByShape`: blocks for large linear layers, the paper's rule elsewhere (the
  default);
- :class:`Expansion`: any combination of partition, pruning and layout.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal

from torch import Tensor, nn
from typing_extensions import Self, override

from fpe_lightning.expansion.checks import groups_of
from fpe_lightning.expansion.fields import CHOSEN, AnyLayout, AnyPartition, AnyPruning
from fpe_lightning.partitions import (
    Clause,
    FromData,
    Overlapping,
    Partition,
    Random,
    Shared,
    resolve_partition,
)
from fpe_lightning.partitions import SemiStructured as SemiStructuredPartition
from fpe_lightning.pruning import Magnitude, Pruning, resolve_pruning
from fpe_lightning.sites import Site
from fpe_lightning.sparse.layout import LAYOUTS

Data = tuple[Tensor, Tensor]
"""Training samples ``(n, inputs)`` as the split layer reads them, and their class numbers ``(n,)``."""


@dataclass(frozen=True, kw_only=True)
class BaseExpansion(ABC):
    """The fields that all ways to expand have in common.

    Args:
        alpha: Children of each neuron, at least 2; or 1 for sites of a mapping that stay as they are.
        optimizer_state: ``"keep"`` copies the state of split parameters to the children, ``"reset"`` drops it.
        seed: Every draw depends on it, on the site's name and its width, and on nothing else.
    """

    alpha: int = 2
    optimizer_state: Literal["keep", "reset"] = "keep"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Integral) or isinstance(self.alpha, bool) or self.alpha < 1:
            raise ValueError(
                f"`alpha` is the number of children of each neuron, an integer of at least 2; found {self.alpha!r}."
            )
        if self.optimizer_state not in ("keep", "reset"):
            raise ValueError(f"Unknown `optimizer_state` {self.optimizer_state!r}; known: keep, reset.")
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise ValueError(f"`seed` is an integer, found {self.seed!r}.")

    @abstractmethod
    def of_sites(self, model: nn.Module, sites: Sequence[Site], others: Sequence[Site] = ()) -> list[SiteExpansion]:
        """How each of some sites of a model is expanded.

        Args:
            model: The model, all of whose weights are stored masked.
            sites: The sites that this object is for.
            others: Sites that are expanded at the same time in another way.
        """

    def fit(self, data: Data | None, clauses: Sequence[Sequence[int]] | None = None) -> Self:
        """Return a copy whose partition and pruning rule are fitted to the data."""
        return self

    @property
    def needs_data(self) -> bool:
        """Whether a partition or a pruning rule has yet to see training samples."""
        return False


@dataclass(frozen=True, kw_only=True)
class Expansion(BaseExpansion):
    """How to expand a site. Every field means the same whatever the others are.

    Args:
        alpha: Children of each neuron, at least 2.
        partition: Which child inherits which input: a registered name, or an object such as those of
            ``fpe_lightning.partitions``.
        prune: Which weights go, so that the number of non-zeros stays: ``"total"`` (the paper's rule), ``"incoming"``,
            ``"outgoing"``, ``"global"`` (one order for the incoming weights of all sites), ``"columns"`` (whole inputs
            of a block), or an object such as those of ``fpe_lightning.pruning``.
        outgoing: ``"copy"`` gives every child a copy of its parent's outgoing weights. ``"partition"`` cuts the outputs
            into ``alpha`` stretches and gives each child the copies of one stretch, so that nothing has to be pruned
            for them.
        layout: How the result is stored: ``"masked"`` (any structure), ``"folded"`` (disjoint partitions, at the size
            of the parent's weight), ``"grouped"`` (dense blocks at the size of the non-zeros, for partitions that
            neurons share), ``"semi_structured"`` (2:4 kernels of GPUs), or one that
            ``fpe_lightning.sparse.register_layout`` added. ``"by_shape"`` folds large weights and masks all others
           . ``"auto"`` stores each weight in the layout that is
            fastest by the clock; times vary, so nothing is timed by default.
        optimizer_state: ``"keep"`` copies the state of split parameters to the children, ``"reset"`` drops it.
        seed: Every draw depends on it, on the site's name and its width, and on nothing else.

    Raises:
        ValueError: If a value is unknown, or two fields cannot go together.

    Example:
        >>> Expansion(partition="shared", prune="incoming").alpha
        2
        >>> Expansion(alpha=4, layout="semi_structured")
        Traceback (most recent call last):
        ...
        ValueError: layout="semi_structured" keeps 2 of 4 inputs, but with alpha=4 a child reads 1 of 4: use ...
    """

    partition: AnyPartition = "random"
    prune: AnyPruning = "total"
    outgoing: Literal["copy", "partition"] = "copy"
    layout: AnyLayout = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Unknown names are refused here, before there is a model.
        partition, _ = resolve_partition(self.partition), resolve_pruning(self.prune)
        if self.outgoing not in ("copy", "partition"):
            raise ValueError(f"Unknown `outgoing` {self.outgoing!r}; known: copy, partition.")
        # What no model could hold is refused here too; what one model cannot hold, by `expand`.
        if self.layout not in CHOSEN and (reason := LAYOUTS.get(self.layout).cannot_split(self.alpha)):
            raise ValueError(f'layout="{self.layout}" {reason}')
        if isinstance(partition, SemiStructuredPartition) and self.alpha != 2:
            raise ValueError(f'The partition "semi_structured" needs alpha=2, found alpha={self.alpha}.')
        if isinstance(partition, Clause) and 0 < len(partition.clauses) < self.alpha:
            raise ValueError(
                f"{len(partition.clauses)} clauses cannot go to alpha={self.alpha} children; use a smaller alpha."
            )
        # Any other partition may turn out to be shared, such as one that was fitted to data.
        if self.layout == "grouped" and isinstance(partition, Random | Overlapping | SemiStructuredPartition):
            raise ValueError(
                f'layout="grouped" stores blocks of neurons that share a partition, and with {partition} each neuron '
                'has its own: use partition=fpe.partitions.Shared(groups=4), or layout="masked".'
            )

    @override
    def of_sites(self, model: nn.Module, sites: Sequence[Site], others: Sequence[Site] = ()) -> list[SiteExpansion]:
        """Every site alike."""
        each = self
        if self.layout == "by_shape" and any(map(groups_of, model.modules())):  # folded weights were not tested there
            each = replace(self, layout="masked")
        return [SiteExpansion(site, each) for site in sites]

    @override
    def fit(self, data: Data | None, clauses: Sequence[Sequence[int]] | None = None) -> Self:
        """Return a copy whose partition and pruning rule are fitted to the data.

        Args:
            data: Training samples and their class numbers, or None.
            clauses: For the partition ``"clause"``: those of a datamodule, or None.

        Raises:
            ValueError: If samples are needed and there are none, or they do not fit.
        """
        # A copy, as one object may serve several sites, runs and seeds.
        changes: dict[str, Any] = {}
        partition = resolve_partition(self.partition)
        # Clauses come with the task, not with samples.
        if isinstance(partition, Clause) and not partition.clauses and clauses is not None:
            changes["partition"] = Clause(clauses)
        for name, part in (("partition", partition), ("prune", resolve_pruning(self.prune))):
            if isinstance(part, FromData) and not part.fitted:
                if data is None:
                    raise ValueError(
                        f"`{name}={part}` needs training samples: pass `data=(x, y)`, or fit it with `.fit(x, y)`."
                    )
                changes[name] = part.fit(*data)
        return replace(self, **changes) if changes else self

    @property
    def needs_data(self) -> bool:
        """Whether a partition or a pruning rule has yet to see training samples."""
        parts = (resolve_partition(self.partition), resolve_pruning(self.prune))
        return any(isinstance(part, FromData) and not part.fitted for part in parts)


@dataclass(frozen=True, kw_only=True)
class Paper(Expansion):
    """The paper's rule: random partitions, and one magnitude order over both layers of a site.

    Its fields are those of :class:`Expansion`. Large weights are folded, and all others masked.

    Example:
        >>> Paper(alpha=4, prune="incoming", seed=1).partition
        'random'
    """

    layout: AnyLayout = "by_shape"


@dataclass(frozen=True, kw_only=True)
class Blocks(Expansion):
    """Dense blocks: groups of neurons share a partition, whole columns go, and the non-zeros alone are stored.

    The other fields are those of :class:`Expansion`, without ``partition``.

    Args:
        groups: Groups of neurons, each with a partition of its own; they have to divide the number of neurons.

    Example:
        >>> Blocks(groups=4).partition
        Shared(groups=4)
    """

    groups: int = 16
    partition: AnyPartition = field(default="shared", init=False)
    prune: AnyPruning = "columns"
    layout: AnyLayout = "grouped"

    def __post_init__(self) -> None:
        # The class is frozen; `groups` is its way to say the partition.
        object.__setattr__(self, "partition", Shared(groups=self.groups))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class SemiStructured(Expansion):
    """The 2:4 pattern: each neuron gets two children, and each reads 2 of every 4 inputs.

    Its fields are those of :class:`Expansion`, without ``alpha`` and ``partition``.

    Example:
        >>> SemiStructured().partition, SemiStructured().alpha
        ('semi_structured', 2)
    """

    alpha: int = field(default=2, init=False)
    partition: AnyPartition = field(default="semi_structured", init=False)
    layout: AnyLayout = "semi_structured"


@dataclass(frozen=True)
class SiteExpansion:
    """One site, and how it is expanded.

    Attributes:
        site: The site.
        expansion: How.
        strict: Whether a layout that cannot hold the site's weights is an error. Otherwise they stay masked.
    """

    site: Site
    expansion: Expansion
    strict: bool = True

    @property
    def alpha(self) -> int:
        """Children of each neuron."""
        return int(self.expansion.alpha)

    @property
    def partition(self) -> Partition:
        """Which child inherits which input."""
        return resolve_partition(self.expansion.partition)

    @property
    def prune(self) -> Pruning:
        """Which weights go."""
        return resolve_pruning(self.expansion.prune)

    @property
    def together(self) -> bool:
        """Whether one order of magnitudes prunes this site together with others of the model."""
        return isinstance(self.prune, Magnitude) and self.prune.scope == "model"

    @property
    def layout(self) -> str:
        """How the result is stored."""
        return self.expansion.layout


AnyExpansion = BaseExpansion | Mapping[str, BaseExpansion]
"""One way to expand for all sites, or several by names or globs of sites; the first that matches counts."""
