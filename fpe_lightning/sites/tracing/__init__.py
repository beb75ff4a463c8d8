"""How hidden widths are found: every entry of every parameter axis is followed through the operators of a forward.

Operators that the tracer does not know end a site. :func:`rule` and :func:`register_operator` make them known.
"""

from fpe_lightning.sites.tracing.call import Call as Call
from fpe_lightning.sites.tracing.operators import register_operator as register_operator
from fpe_lightning.sites.tracing.operators import rule as rule
from fpe_lightning.sites.tracing.tags import Tag as Tag
