"""Layers that hold a sparse structure, and interchangeable ways to compute them."""

from fpe_lightning.sparse.grouped import GroupedConv1d as GroupedConv1d
from fpe_lightning.sparse.grouped import GroupedConv2d as GroupedConv2d
from fpe_lightning.sparse.grouped import GroupedConv3d as GroupedConv3d
from fpe_lightning.sparse.grouped import GroupedLinear as GroupedLinear
from fpe_lightning.sparse.grouped import structure_of as structure_of
from fpe_lightning.sparse.masked import check_masks as check_masks
from fpe_lightning.sparse.masked import mask_of as mask_of
from fpe_lightning.sparse.masked import masked_parameters as masked_parameters
from fpe_lightning.sparse.masked import set_mask as set_mask
from fpe_lightning.sparse.record import Record as Record
from fpe_lightning.sparse.record import Split as Split
from fpe_lightning.sparse.record import parents_of as parents_of
from fpe_lightning.sparse.record import record_of as record_of
from fpe_lightning.sparse.storage import dense_mask as dense_mask
from fpe_lightning.sparse.storage import dense_weight as dense_weight
from fpe_lightning.sparse.storage import group as group
from fpe_lightning.sparse.storage import ungroup as ungroup
