"""Fixed Parameter Expansion (arXiv 2510.04500) for PyTorch and Lightning.

Split each neuron of a network into several children, give each child a disjoint share of its parent's incoming
weights, and keep the number of non-zero parameters.
"""

from fpe_lightning import partitions as partitions
from fpe_lightning import pruning as pruning
from fpe_lightning import rewiring as rewiring
from fpe_lightning.checkpoints import expand_checkpoint as expand_checkpoint
from fpe_lightning.checkpoints import expanded_checkpoints as expanded_checkpoints
from fpe_lightning.checkpoints import from_pretrained as from_pretrained
from fpe_lightning.checkpoints import load_expanded_state_dict as load_expanded_state_dict
from fpe_lightning.checkpoints import plain as plain
from fpe_lightning.checkpoints import restore_structure as restore_structure
from fpe_lightning.checkpoints import restore_structure_from_file as restore_structure_from_file
from fpe_lightning.checkpoints import restore_structure_on_load as restore_structure_on_load
from fpe_lightning.checkpoints import save_plain as save_plain
from fpe_lightning.expansion import Auto as Auto
from fpe_lightning.expansion import Blocks as Blocks
from fpe_lightning.expansion import ByShape as ByShape
from fpe_lightning.expansion import Expansion as Expansion
from fpe_lightning.expansion import ExpansionReport as ExpansionReport
from fpe_lightning.expansion import ExpansionWarning as ExpansionWarning
from fpe_lightning.expansion import Paper as Paper
from fpe_lightning.expansion import SemiStructured as SemiStructured
from fpe_lightning.expansion import advise_sites as advise_sites
from fpe_lightning.expansion import expand as expand
from fpe_lightning.interference import feature_capacity as feature_capacity
from fpe_lightning.interference import mean_cosine_similarity as mean_cosine_similarity
from fpe_lightning.rewiring import RewireReport as RewireReport
from fpe_lightning.rewiring import rewire as rewire
from fpe_lightning.rewiring import sparsify as sparsify
from fpe_lightning.sites import Site as Site
from fpe_lightning.sites import find_sites as find_sites
from fpe_lightning.sparse import count_nonzeros as count_nonzeros
from fpe_lightning.sparse import merge as merge

__version__ = "0.1.0"
