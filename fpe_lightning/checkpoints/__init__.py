"""Structure from a ``state_dict`` or a file, and checkpoints that are expanded on disk."""

from fpe_lightning.checkpoints.expand_file import expand_checkpoint as expand_checkpoint
from fpe_lightning.checkpoints.expand_file import restore_structure_from_file as restore_structure_from_file
from fpe_lightning.checkpoints.restore import load_expanded_state_dict as load_expanded_state_dict
from fpe_lightning.checkpoints.restore import restore_structure as restore_structure
from fpe_lightning.checkpoints.restore import restore_structure_on_load as restore_structure_on_load
