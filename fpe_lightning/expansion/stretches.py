"""Outgoing weights that are partitioned among children in block order: each stretch of outputs reads one block.

The blocks then hold the weights of the parent in their order, so that nothing but the shape changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fpe_lightning.expansion.checks import read_by_parent
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.pruning import Magnitude
from fpe_lightning.sites.site import Axis
from fpe_lightning.sparse.conv1d import has_inputs_first
from fpe_lightning.sparse.grouped.layers import BLOCKS
from fpe_lightning.sparse.grouped.layout import GROUPED
from fpe_lightning.sparse.layout import Layout, Structure
from fpe_lightning.sparse.record import Split


@dataclass
class StretchTensor(DraftTensor):
    """The weight of a linear layer that reads children, whose outputs are cut into stretches; ``value`` is the old one.

    Attributes:
        alpha: Stretches, as many as children.
        dim: The axis of the units that it reads.
        width: How many units there were.
    """

    alpha: int = 1
    dim: int = 1
    width: int = 1

    @override
    def count(self) -> int:
        """Entries that may be non-zero: none goes, and none is copied."""
        return self.original.numel()

    @override
    def follow(self, state: Tensor) -> Tensor:
        """The same values, block after block: those of a parent's weight with a row for each output."""
        return (state if self.dim else state.t()).reshape(-1, 1)

    @override
    def stored(self) -> tuple[Layout, Structure]:
        """The layout, and a block for each stretch of outputs."""
        child = torch.arange(self.alpha * self.width) // self.width
        return GROUPED, {BLOCKS: child == torch.arange(self.alpha).unsqueeze(1)}


def fits_stretches(model: nn.Module, split: SiteExpansion, axis: Axis, optimizers: Sequence[Optimizer]) -> bool:
    """Whether a consumer of a site in block order can be stored in stretches: a dense linear layer that loses nothing.

    The caller has checked that nothing else touches its weight.
    """
    owner, _, name = axis.parameter.rpartition(".")
    module, rule = model.get_submodule(owner), split.prune
    turned = has_inputs_first(type(module))
    if not (type(module) is nn.Linear or turned) or name != "weight" or GROUPED.cannot_hold(module):
        return False
    if read_by_parent(model, owner) or owner not in split.site.input_shapes:
        return False
    weight, dim = module.get_parameter("weight"), 0 if turned else 1
    states = [value for optimizer in optimizers for value in optimizer.state.get(weight, {}).values()]
    return (
        split.expansion.outgoing == "partition"
        and isinstance(rule, Magnitude)
        and rule.side == "incoming"
        and (axis.dim, axis.start, axis.run, axis.length) == (dim, 0, 1, weight.shape[dim])
        and 2 * split.alpha <= weight.shape[1 - dim]
        and all(isinstance(value, Tensor) and (value.shape == weight.shape or value.numel() == 1) for value in states)
    )


def partition_stretches(draft: Draft, axis: Axis, alpha: int) -> None:
    """Give each stretch of outputs to the children of its number.

    Args:
        draft: The expansion.
        axis: A consumer that :func:`fits_stretches`.
        alpha: Children of each neuron.
    """
    dense = draft[axis.parameter]
    draft.tensors[axis.parameter] = StretchTensor(
        dense.owner,
        dense.name,
        dense.original,
        dense.value,
        None,
        splits=[Split(axis.dim, 0, axis.length, axis.length, alpha)],
        separate=True,
        alpha=alpha,
        dim=axis.dim,
        width=axis.length,
    )
