"""The one verb: split the neurons of a model at a fixed number of non-zero parameters."""

from fpe_lightning.expansion.expand import expand as expand
from fpe_lightning.expansion.report import ExpansionReport as ExpansionReport
from fpe_lightning.expansion.report import SiteReport as SiteReport
from fpe_lightning.expansion.split_site import ExpansionWarning as ExpansionWarning
