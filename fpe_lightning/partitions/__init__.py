"""WHO inherits which input: pure functions of tensors."""

from fpe_lightning.partitions.interaction import interaction_partition as interaction_partition
