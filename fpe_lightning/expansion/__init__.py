"""The one verb: split the neurons of a model at a fixed number of non-zero parameters."""

from fpe_lightning.expansion.advice import Advice as Advice
from fpe_lightning.expansion.advice import advise_sites as advise_sites
from fpe_lightning.expansion.auto import Auto as Auto
from fpe_lightning.expansion.by_shape import ByShape as ByShape
from fpe_lightning.expansion.config import AnyExpansion as AnyExpansion
from fpe_lightning.expansion.config import BaseExpansion as BaseExpansion
from fpe_lightning.expansion.config import Blocks as Blocks
from fpe_lightning.expansion.config import Expansion as Expansion
from fpe_lightning.expansion.config import Paper as Paper
from fpe_lightning.expansion.config import SemiStructured as SemiStructured
from fpe_lightning.expansion.expand import expand as expand
from fpe_lightning.expansion.expand import resolve_expansion as resolve_expansion
from fpe_lightning.expansion.report import ExpansionReport as ExpansionReport
from fpe_lightning.expansion.report import ExpansionWarning as ExpansionWarning
from fpe_lightning.expansion.report import SiteReport as SiteReport
