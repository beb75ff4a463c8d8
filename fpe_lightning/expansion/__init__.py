"""What changes: find the widths that can grow, split their neurons, keep the non-zero budget."""

from fpe_lightning.expansion.find import Refusal, find_sites
from fpe_lightning.expansion.sites import Attribute, Axis, Producer, Site

__all__ = ["Attribute", "Axis", "Producer", "Refusal", "Site", "find_sites"]
