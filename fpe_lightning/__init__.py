"""Fixed Parameter Expansion (arXiv 2510.04500) for PyTorch and Lightning.

Split each neuron of a network into several children, hand each child a disjoint share of its parent's incoming
weights, and keep the number of non-zero parameters.
"""

from fpe_lightning.checkpoints import load_expanded_state_dict as load_expanded_state_dict
from fpe_lightning.checkpoints import restore_structure as restore_structure
from fpe_lightning.checkpoints import restore_structure_on_load as restore_structure_on_load
from fpe_lightning.checkpoints.expand_file import expand_checkpoint as expand_checkpoint
from fpe_lightning.checkpoints.expand_file import restore_structure_from_file as restore_structure_from_file
from fpe_lightning.expansion import ExpansionReport as ExpansionReport
from fpe_lightning.expansion import ExpansionWarning as ExpansionWarning
from fpe_lightning.expansion import expand as expand
from fpe_lightning.partitions import interaction_partition as interaction_partition
from fpe_lightning.pruning import DiscriminantRefit as DiscriminantRefit
from fpe_lightning.sites import Site as Site
from fpe_lightning.sites import find_sites as find_sites
from fpe_lightning.sparse import count_nonzeros as count_nonzeros

__version__ = "0.1.0"
