"""Split a dense layer straight into folded weights: values stay where they are, and only their codes are drawn.

A folded weight holds the weights of its parent in their places. So a split assigns a code to each place, zeros what is
pruned, and makes nothing of the wide weight's size. Weight, gradient and moments are not even copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fpe_lightning.expansion.assign import kept_outputs
from fpe_lightning.expansion.checks import read_by_parent
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.expansion.wrappers import is_wrapper
from fpe_lightning.partitions import Random
from fpe_lightning.pruning import Magnitude
from fpe_lightning.pruning.smallest import PIECE, Piece
from fpe_lightning.sites.site import Axis, Site
from fpe_lightning.sparse.conv1d import has_inputs_first
from fpe_lightning.sparse.folded.codes import Fold, with_header
from fpe_lightning.sparse.folded.layers import CODES
from fpe_lightning.sparse.folded.layout import FOLDED, pays
from fpe_lightning.sparse.guard import zero_masked_
from fpe_lightning.sparse.layout import Layout, Structure
from fpe_lightning.sparse.record import Split


@dataclass
class FoldedTensor(DraftTensor):
    """The weight of a linear layer on its way into the folded layout; ``value`` is the old one.

    Attributes:
        code: uint8 of the old shape, the child of each place (see :mod:`fpe_lightning.sparse.folded.codes`).
        fold: Which rows or columns of the wide weight fold together: those of one axis.
        pruned: Places without a child.
    """

    code: Tensor = field(default_factory=lambda: torch.empty(0))
    fold: Fold = field(default_factory=Fold)
    pruned: int = 0

    @override
    def count(self) -> int:
        """Entries that may be non-zero."""
        return self.code.numel() - self.pruned

    @override
    def follow(self, state: Tensor) -> Tensor:
        """The same values, in the same places; pruned ones become zero."""
        return state.masked_fill(self.code.to(state.device) == self.fold.codes, 0) if self.pruned else state

    @override
    def stored(self) -> tuple[Layout, Structure]:
        """The folded layout, and the packed codes."""
        return FOLDED, {CODES: with_header(self.code, self.fold)}

    @override
    def pieces(self, axes: Sequence[tuple[Axis, int]] = ()) -> tuple[list[Piece], int]:
        """The weights that are left, in the order in which the wide weight has them: ties go by it."""
        return [partial(self._piece, rows) for rows in self._stretches()], self.count()

    @override
    def keep(self, axes: Sequence[tuple[Axis, int]], pieces: Iterable[Tensor]) -> None:
        """Drop single weights: for each of :meth:`pieces` a bool tensor of its shape, True for weights that stay."""
        for rows, kept in zip(self._stretches(), pieces, strict=True):
            gone = self._order(rows)[~kept]
            self.code[rows].view(-1)[gone] = self.fold.codes
            self.pruned += len(gone)

    def _stretches(self) -> list[slice]:
        rows = max(1, PIECE // self.code.shape[1])
        return [slice(start, start + rows) for start in range(0, len(self.code), rows)]

    def _piece(self, rows: slice) -> tuple[Tensor, None]:
        return self.value[rows].reshape(-1)[self._order(rows)], None

    def _order(self, rows: slice) -> Tensor:
        """Places in some rows that are not pruned, in the order in which the wide weight has them."""
        code = self.code[rows]
        if self.fold.children == 1:  # the children of a column stand in its place
            return (code.reshape(-1) < self.fold.codes).nonzero().squeeze(1)
        order = code.argsort(dim=1, stable=True)
        left = code.gather(1, order) < self.fold.codes
        return order.add_(code.shape[1] * torch.arange(len(code), device=code.device).unsqueeze(1))[left]

    def settle(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Fold the weight of a module in place: zero what is pruned, in its gradient and its moments too."""
        layout, structure = self.stored()
        weight = module.get_parameter("weight")
        held = [weight.data] if weight.grad is None else [weight.data, weight.grad]
        for optimizer in optimizers:
            if self.reset_state and not is_wrapper(optimizer):
                optimizer.state.pop(weight, None)
            state = optimizer.state.get(weight, {}) if weight in optimizer.state else {}
            held += [value for value in state.values() if isinstance(value, Tensor) and value.shape == weight.shape]
        for rows in self._stretches() if self.pruned else ():
            left = (self.code[rows] < self.fold.codes).to(weight.device)
            for tensor in held:
                zero_masked_(tensor[rows], left)
        layout.put_on(module, {name: tensor.to(weight.device) for name, tensor in structure.items()})


def fits_folded(model: nn.Module, splits: Sequence[SiteExpansion], optimizers: Sequence[Optimizer]) -> set[str]:
    """The weights that can be folded where they are.

    Those are weights of dense linear layers that are touched once: all producers of a site whose neurons draw
    partitions of their own, and consumers whose outputs are partitioned. All others are split by way of the wide
    weight, with equal results.
    """
    used = Counter(axis.parameter for split in splits for axis in split.site.axes())
    found: set[str] = set()
    for split in splits:
        rule, site = split.prune, split.site
        # Neurons of `Random` draw one after the other, so that they can be drawn in pieces.
        if type(split.partition) is not Random or not isinstance(rule, Magnitude) or rule.granularity != "weight":
            continue

        def fits(axis: Axis, dim: int, split: SiteExpansion = split) -> bool:
            return used[axis.parameter] == 1 and _fits(model, split, axis, dim, optimizers)

        if all(axis.length == site.width and fits(axis, 0) for axis in site.producers):
            found |= {axis.parameter for axis in site.producers}
        if split.expansion.outgoing == "partition":
            found |= {axis.parameter for axis in site.consumers if axis.length == site.width and fits(axis, 1)}
    return found


def _fits(model: nn.Module, split: SiteExpansion, axis: Axis, dim: int, optimizers: Sequence[Optimizer]) -> bool:
    """Whether an axis is a whole one of a dense linear layer that is going to be folded, and can be where it is."""
    owner, _, name = axis.parameter.rpartition(".")
    module = model.get_submodule(owner)
    turned = has_inputs_first(type(module))
    if not (type(module) is nn.Linear or turned) or name != "weight" or FOLDED.cannot_hold(module):
        return False
    if read_by_parent(model, owner) or owner not in split.site.input_shapes:
        return False
    weight, alpha = module.get_parameter("weight"), split.alpha
    dim = 1 - dim if turned else dim
    states = [value for optimizer in optimizers for value in optimizer.state.get(weight, {}).values()]
    return (
        (split.layout == "folded" or (split.layout == "by_shape" and pays(weight.shape)))
        and (axis.dim, axis.start, axis.run) == (dim, 0, 1)
        and axis.length == weight.shape[dim]
        and alpha <= min(weight.shape[1 - dim], 254)
        and weight.is_contiguous()
        and all(isinstance(value, Tensor) and (value.shape == weight.shape or value.numel() == 1) for value in states)
    )


def assign_folded(draft: Draft, site: Site, alpha: int, generator: Generator) -> None:
    """Assign the inputs of a site to the children, as codes.

    Args:
        draft: The expansion.
        site: A site that :func:`fits_folded`.
        alpha: Children of each neuron.
        generator: The only source of randomness.
    """
    # One draw for each number of inputs: gate and value of a gated network share it.
    codes: dict[int, Tensor] = {}
    for producer in site.producers:
        weight = draft[producer.parameter].value
        inputs = weight.shape[producer.input_dim]
        if inputs not in codes:
            codes[inputs] = _drawn(producer.length, inputs, alpha, generator)
        code = codes[inputs] if producer.dim == 0 else codes[inputs].t()
        _fold(draft, producer, alpha, code.to(weight.device).clone(memory_format=torch.contiguous_format))


def _drawn(neurons: int, inputs: int, alpha: int, generator: Generator) -> Tensor:
    """The child of each input of each neuron, uint8; as many neurons at a time as bound the memory in use."""
    code, rows = torch.empty(neurons, inputs, dtype=torch.uint8), max(1, PIECE // inputs)
    for some in code.split(rows):
        alive = torch.ones(some.shape, dtype=torch.bool)
        some.copy_(Random()(alive.unsqueeze(2), alive, alpha, generator))
    return code


def partition_folded(draft: Draft, axis: Axis, alpha: int) -> None:
    """Give each outgoing weight to the child of its stretch of outputs, as codes.

    Args:
        draft: The expansion.
        axis: A consumer that :func:`fits_folded`.
        alpha: Children of each neuron.
    """
    weight = draft[axis.parameter].value
    child = kept_outputs(torch.arange(alpha), weight.shape[1 - axis.dim], alpha).to(torch.uint8).argmax(1)
    code = child.to(weight.device, torch.uint8).unsqueeze(axis.dim).expand(weight.shape).clone()
    _fold(draft, axis, alpha, code)


def _fold(draft: Draft, axis: Axis, alpha: int, code: Tensor) -> None:
    fold = Fold(alpha) if axis.dim == 0 else Fold(columns=alpha)
    dense = draft[axis.parameter]
    splits = [Split(axis.dim, 0, axis.length, 1, alpha)]
    draft.tensors[axis.parameter] = FoldedTensor(
        dense.owner, dense.name, dense.original, dense.value, None, splits=splits, separate=True, code=code, fold=fold
    )
