"""Layers that hold a sparse structure, and interchangeable ways to compute them."""

from fpe_lightning.sparse.masked import check_masks as check_masks
from fpe_lightning.sparse.masked import mask_of as mask_of
from fpe_lightning.sparse.masked import masked_parameters as masked_parameters
from fpe_lightning.sparse.masked import set_mask as set_mask
from fpe_lightning.sparse.record import Record as Record
from fpe_lightning.sparse.record import Split as Split
from fpe_lightning.sparse.record import parents_of as parents_of
from fpe_lightning.sparse.record import record_of as record_of
