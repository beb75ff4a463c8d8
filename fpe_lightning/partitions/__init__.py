"""WHO inherits which input: pure functions of tensors, one object each."""

from fpe_lightning.partitions.clause import Clause as Clause
from fpe_lightning.partitions.feature import Feature as Feature
from fpe_lightning.partitions.interaction import Affinity as Affinity
from fpe_lightning.partitions.interaction import Interaction as Interaction
from fpe_lightning.partitions.interaction import input_affinity as input_affinity
from fpe_lightning.partitions.partition import FromData as FromData
from fpe_lightning.partitions.partition import Partition as Partition
from fpe_lightning.partitions.partition import PartitionName as PartitionName
from fpe_lightning.partitions.partition import register_partition as register_partition
from fpe_lightning.partitions.partition import resolve_partition as resolve_partition
from fpe_lightning.partitions.random import Overlapping as Overlapping
from fpe_lightning.partitions.random import Random as Random
from fpe_lightning.partitions.random import SemiStructured as SemiStructured
from fpe_lightning.partitions.shared import Contiguous as Contiguous
from fpe_lightning.partitions.shared import Shared as Shared
from fpe_lightning.partitions.shared import SharedPartition as SharedPartition

register_partition("random", Random())
register_partition("shared", Shared())
register_partition("contiguous", Contiguous())
register_partition("feature", Feature())
register_partition("clause", Clause())
register_partition("interaction", Interaction())
register_partition("semi_structured", SemiStructured())
register_partition("overlapping", Overlapping())
