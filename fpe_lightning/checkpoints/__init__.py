"""Structure from a ``state_dict`` or a file, and checkpoints that are expanded on disk."""

from fpe_lightning.checkpoints.expand_file import expand_checkpoint as expand_checkpoint
from fpe_lightning.checkpoints.load_hook import restore_structure_on_load as restore_structure_on_load
from fpe_lightning.checkpoints.loaders import expanded_checkpoints as expanded_checkpoints
from fpe_lightning.checkpoints.loaders import from_pretrained as from_pretrained
from fpe_lightning.checkpoints.plain_layers import plain as plain
from fpe_lightning.checkpoints.plain_layers import save_plain as save_plain
from fpe_lightning.checkpoints.read import restore_structure_from_file as restore_structure_from_file
from fpe_lightning.checkpoints.restore import load_expanded_state_dict as load_expanded_state_dict
from fpe_lightning.checkpoints.restore import restore_structure as restore_structure
