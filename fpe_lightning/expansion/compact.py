"""Split a dense layer straight into blocks, without the wide weight in between.

Where neurons share partitions, a child's weights are a rectangle of its parents' weight: some rows, some columns. The
packed weight, its gradient and its moments are gathered from there one after the other, each when the one before is
gone, so that a split takes little more memory than the layer itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from fpe_lightning.expansion.assign import common_group
from fpe_lightning.expansion.checks import read_by_parent
from fpe_lightning.expansion.config import SiteExpansion
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.draft_tensor import DraftTensor
from fpe_lightning.expansion.folded import FoldedTensor
from fpe_lightning.expansion.order import block_order
from fpe_lightning.expansion.parts import part_of
from fpe_lightning.expansion.stretches import fits_stretches
from fpe_lightning.expansion.wrappers import is_wrapper
from fpe_lightning.partitions.shared import SharedPartition
from fpe_lightning.pruning import Magnitude
from fpe_lightning.pruning.columns import summed_in
from fpe_lightning.pruning.smallest import Piece
from fpe_lightning.sites.site import Axis, Producer, Site
from fpe_lightning.sparse.conv1d import has_inputs_first
from fpe_lightning.sparse.exchange import exchange_parameters, parameter_like
from fpe_lightning.sparse.grouped.blocks import join_blocks
from fpe_lightning.sparse.grouped.layers import BLOCKS
from fpe_lightning.sparse.grouped.layout import GROUPED, MOST_BLOCKS
from fpe_lightning.sparse.layout import Layout, Structure
from fpe_lightning.sparse.masked import set_mask
from fpe_lightning.sparse.record import Split

ROWS = 256
"""Rows of a weight that are looked at together."""


@dataclass
class CompactTensor(DraftTensor):
    """The weight of a linear layer on its way into blocks; ``value`` is the old one, ``mask`` of the packed shape.

    Attributes:
        inputs: Bool ``(blocks, inputs)``, the inputs of each block: a block for the first children of each group of
            neurons, then one for the second children of each, and so on.
        alpha: Children of each neuron.
        column: Weights in one column of a block: as many as rows.
        turned: Whether the weight in the model has its inputs first; ``value`` is a view of it with its neurons first.
    """

    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    alpha: int = 1
    column: int = 0
    turned: bool = False

    @override
    def count(self) -> int:
        """Entries that may be non-zero."""
        return self.column * int(self.inputs.sum()) if self.mask is None else int(self.mask.count_nonzero())

    @override
    def follow(self, state: Tensor) -> Tensor:
        """Gather a tensor of the old shape (the weight, a gradient, a moment) into a packed one."""
        state = state.t() if self.turned else state
        packed = state.new_empty(self.column * int(self.inputs.sum()), 1)
        # Each block is gathered into its place, so that nothing of the wide weight's size is ever there.
        done = 0
        for block in range(len(self.inputs)):
            rows, index = self._rectangle(state, block)
            out = packed.narrow(0, done, len(rows) * len(index))
            torch.index_select(rows, 1, index, out=out.view(len(rows), len(index)))
            if self.mask is not None:
                out.masked_fill_(~self.mask.narrow(0, done, len(out)).to(packed.device), 0)
            done += len(out)
        return packed

    @override
    def columns(self) -> CompactTensor:
        """Itself: its blocks lose whole columns."""
        return self

    @override
    def stored(self) -> tuple[Layout, Structure]:
        """The layout, and the blocks with those of equal inputs joined where no single weight is masked."""
        joined = self.inputs if self.mask is not None else join_blocks(self.inputs, self.column)
        return GROUPED, {BLOCKS: joined.clone()}

    @override
    def pieces(self, axes: Sequence[tuple[Axis, int]] = ()) -> tuple[list[Piece], int]:
        """Some rows of one block after the other, for the rules that look at magnitudes."""
        starts = range(0, self.column, ROWS)
        pieces: list[Piece] = [
            partial(self._piece, block, start) for block in range(len(self.inputs)) for start in starts
        ]
        return pieces, self.count()

    @override
    def keep(self, axes: Sequence[tuple[Axis, int]], pieces: Iterable[Tensor]) -> None:
        """Drop single weights: for each of :meth:`pieces` a bool tensor of its shape, True for weights that stay."""
        kept = list(pieces)
        if all(bool(piece.all()) for piece in kept):
            return
        # Other drafts may hold the same blocks, so a copy changes.
        self.inputs, parts = self.inputs.clone(), len(kept) // len(self.inputs)
        for block, reads in enumerate(self.inputs):
            own = kept[block * parts : (block + 1) * parts]
            # A column without weights goes as a whole, so that the block gets narrower.
            columns = torch.stack([piece.any(0) for piece in own]).any(0)
            if not bool(columns.all()):  # a column that lost every weight is not read
                reads[reads.clone()] = columns
                kept[block * parts : (block + 1) * parts] = [piece[:, columns] for piece in own]
        # Weights that went out of columns that stay are masked inside of the block.
        self.mask = torch.cat([piece.reshape(-1, 1) for piece in kept])

    def reads(self) -> Tensor:
        """Bool ``(blocks, inputs)``: the inputs of each block."""
        return self.inputs

    def norms(self) -> Tensor:
        """``(blocks, inputs)``: the sum of squares of each column."""
        dtype = torch.promote_types(self.value.dtype, torch.float32)
        # Children of one number read other columns of the same rows: one sum for each group of neurons serves them all.
        groups = []
        for group in self.value.split(self.column):
            squares = (rows.to(dtype).square() for rows in group.split(ROWS))
            groups.append(sum(square.sum(0, dtype=summed_in(square)) for square in squares))
        return torch.stack(groups).repeat(self.alpha, 1) * self.inputs

    def without(self, goes: Tensor) -> CompactTensor:
        """The same without some columns."""
        return replace(self, inputs=self.inputs & ~goes)

    def _piece(self, block: int, start: int) -> tuple[Tensor, None]:
        rows, index = self._rectangle(self.value, block)
        return rows[start : start + ROWS].index_select(1, index), None

    def _rectangle(self, parent: Tensor, block: int) -> tuple[Tensor, Tensor]:
        rows = parent.narrow(0, block * self.column % len(parent), self.column)
        return rows, self.inputs[block].nonzero().squeeze(1)


def fits_compact(model: nn.Module, splits: Sequence[SiteExpansion], optimizers: Sequence[Optimizer]) -> set[str]:
    """The weights that can be split straight into blocks: all dense linear producers of a site, touched once.

    Consumers whose outputs are partitioned can be, too.

    All others are split by way of the wide weight, with equal results.
    """
    sites = [split.site for split in splits]
    axes = [axis for site in sites for axis in site.axes()]
    used = Counter(axis.parameter for axis in axes)

    def fits(split: SiteExpansion) -> bool:
        # Whatever decides on single weights, or draws for single neurons, needs the wide weight.
        partition, site, alpha = split.partition, split.site, split.alpha
        if split.layout != "grouped" or not isinstance(partition, SharedPartition):
            return False
        if not isinstance(split.prune, Magnitude):
            return False
        return (
            # Groups of one size, few and high enough blocks, children in block order, nothing shared.
            site.width % partition.groups == 0
            and alpha * partition.groups <= min(MOST_BLOCKS, alpha * site.width // 2)
            and block_order(model, site) is not site
            and all(
                used[producer.parameter] == 1 and _fits(model, site, producer, alpha, optimizers)
                for producer in site.producers
            )
        )

    found: set[str] = set()
    for split in splits:
        if fits(split):
            found |= {producer.parameter for producer in split.site.producers}
            readers = [axis for axis in split.site.consumers if used[axis.parameter] == 1]
            found |= {axis.parameter for axis in readers if fits_stretches(model, split, axis, optimizers)}
    return found


def _fits(model: nn.Module, site: Site, producer: Producer, alpha: int, optimizers: Sequence[Optimizer]) -> bool:
    owner, _, name = producer.parameter.rpartition(".")
    module = model.get_submodule(owner)
    turned = has_inputs_first(type(module))
    if not (type(module) is nn.Linear or turned) or name != "weight" or GROUPED.cannot_hold(module):
        return False
    if read_by_parent(model, owner) or owner not in site.input_shapes:  # something other than its own layer reads it
        return False
    weight, dim = module.get_parameter("weight"), int(turned)
    # The site owns all rows of the layer, in the order of its units.
    whole = (producer.dim, producer.input_dim, producer.start, producer.run) == (dim, 1 - dim, 0, 1)
    states = [value for optimizer in optimizers for value in optimizer.state.get(weight, {}).values()]
    return (
        whole
        and producer.length == weight.shape[dim] == site.width
        and alpha <= weight.shape[1 - dim]
        and all(isinstance(value, Tensor) and (value.shape == weight.shape or value.numel() == 1) for value in states)
    )


def assign_blocks(
    draft: Draft, site: Site, alpha: int, partition: SharedPartition, generator: Generator
) -> tuple[Site, int]:
    """Assign the inputs of a site to the children, as blocks.

    Args:
        draft: The expansion.
        site: A site that :func:`fits_compact`.
        alpha: Children of each neuron.
        partition: Which child inherits which input.
        generator: The only source of randomness.

    Returns:
        The site in block order, and the number of neurons that share a partition.
    """
    # One draw for each number of inputs: gate and value of a gated network share it.
    fan_in = [draft[producer.parameter].value.shape[producer.input_dim] for producer in site.producers]
    shares = {inputs: partition.by_group(inputs, alpha, generator) for inputs in dict.fromkeys(fan_in)}
    same = common_group(list(shares.values()))  # neighbouring groups that drew the same are one
    together = same * site.width // partition.groups
    for producer, inputs in zip(site.producers, fan_in, strict=True):
        dense = draft[producer.parameter]
        # Block order: the first children of all groups, then the second ones.
        blocks = shares[inputs][::same].transpose(0, 1).reshape(-1, inputs).to(dense.original.device)
        draft.tensors[producer.parameter] = CompactTensor(
            dense.owner,
            dense.name,
            dense.original,
            dense.value.movedim(producer.dim, 0),
            None,
            splits=[Split(producer.dim, 0, site.width, site.width, alpha)],
            separate=True,
            inputs=blocks,
            alpha=alpha,
            column=together,
            turned=producer.dim == 1,
        )
    return block_order(draft.model, site), together


def put_in_place(tensors: list[DraftTensor], models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
    """Replace the weights that are gathered into their layout, one tensor at a time; the last step of a split.

    Args:
        tensors: Those of an expansion that are put in place by themselves; everything else is in place already. Each
            leaves the list.
        models: The model, and modules of its structure that are changed alike.
        optimizers: Optimizers that hold the weights.
    """
    while tensors:
        tensor = tensors.pop(0)
        # From here on only the models and the optimizers may hold the old weights, so that these can go.
        tensor.original = tensor.value = torch.empty(0)
        for model in models:
            module = part_of(model, tensor.owner)
            if module is not None and isinstance(tensor, FoldedTensor):
                tensor.settle(module, optimizers)
            elif module is not None:
                _replace(module, tensor, optimizers)


def _replace(module: nn.Module, tensor: DraftTensor, optimizers: Sequence[Optimizer]) -> None:
    layout, structure = tensor.stored()
    old = module.get_parameter("weight")
    structure = {name: each.to(old.device) for name, each in structure.items()}
    # Weight, gradient and state hand over one after the other; the old one goes before the next is made.
    gradient, shape = old.grad, old.shape
    old.grad = None
    new = parameter_like(old, tensor.follow(old.detach()))
    layout.put_on(module, structure)
    module._parameters["weight"] = new
    if tensor.mask is not None:
        set_mask(module, "weight", tensor.mask)
    states = [(optimizer, optimizer.state[old]) for optimizer in optimizers if old in optimizer.state]
    exchange_parameters(optimizers, {old: new})
    del old
    # One tensor at a time, so that at most one old and one new one exist together.
    if gradient is not None:
        new.grad = tensor.follow(gradient)
        del gradient
    for optimizer, state in states:
        if tensor.reset_state and not is_wrapper(optimizer):
            continue
        for key, value in state.items():
            if value.shape == shape:
                state[key] = tensor.follow(value)
        optimizer.state[new] = state
