"""Types of the fields of an expansion: type checkers know the names of this package, a run knows registered ones too.

So a checker finds ``partition="radnom"`` before a run. Pass an object, not a name, where it should accept a partition
of your own. These types have a module of their own, because jsonargparse evaluates the blocks for type checkers of the
module that holds a dataclass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from fpe_lightning.partitions import Partition, PartitionName
from fpe_lightning.pruning import Pruning, PruningName

LayoutName: TypeAlias = Literal["masked", "folded", "grouped", "semi_structured", "by_shape", "auto"]

CHOSEN = frozenset({"by_shape", "auto"})
"""Names of the field ``layout`` that leave the choice to a rule, or to a clock."""

if TYPE_CHECKING:
    AnyPartition: TypeAlias = PartitionName | Partition
    AnyPruning: TypeAlias = PruningName | Pruning
    AnyLayout: TypeAlias = LayoutName
else:
    AnyPartition = PartitionName | Partition | str
    AnyPruning = PruningName | Pruning | str
    AnyLayout = LayoutName | str
