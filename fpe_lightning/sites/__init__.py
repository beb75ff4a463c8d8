"""WHERE a model can widen: the hidden widths of any module, found by tracing and proven by trial."""

from fpe_lightning.sites.candidates import Refusal as Refusal
from fpe_lightning.sites.find import find_sites as find_sites
from fpe_lightning.sites.site import Attribute as Attribute
from fpe_lightning.sites.site import Axis as Axis
from fpe_lightning.sites.site import Producer as Producer
from fpe_lightning.sites.site import Site as Site
