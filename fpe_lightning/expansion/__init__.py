"""What changes: find the widths that can grow, split their neurons, keep the non-zero budget."""

from fpe_lightning.expansion.affinity import interaction_partition as interaction_partition
from fpe_lightning.expansion.budget import count_nonzeros as count_nonzeros
from fpe_lightning.expansion.checkpoint import load_expanded_state_dict as load_expanded_state_dict
from fpe_lightning.expansion.checkpoint import restore_structure as restore_structure
from fpe_lightning.expansion.checkpoint import restore_structure_on_load as restore_structure_on_load
from fpe_lightning.expansion.expand import expand as expand
from fpe_lightning.expansion.find import Refusal as Refusal
from fpe_lightning.expansion.find import find_sites as find_sites
from fpe_lightning.expansion.refit import DiscriminantRefit as DiscriminantRefit
from fpe_lightning.expansion.report import ExpansionReport as ExpansionReport
from fpe_lightning.expansion.report import SiteReport as SiteReport
from fpe_lightning.expansion.sites import Attribute as Attribute
from fpe_lightning.expansion.sites import Axis as Axis
from fpe_lightning.expansion.sites import Producer as Producer
from fpe_lightning.expansion.sites import Site as Site
from fpe_lightning.expansion.split_site import ExpansionWarning as ExpansionWarning
