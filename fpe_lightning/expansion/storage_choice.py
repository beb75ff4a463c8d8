"""Which weights of a split are stored in blocks, and with which structure."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fpe_lightning.expansion.draft import Draft, DraftTensor
from fpe_lightning.expansion.optimizer import States
from fpe_lightning.expansion.sites import Site
from fpe_lightning.sparse.blocks import count_blocks, find_blocks
from fpe_lightning.sparse.grouped import cannot_group

MOST_BLOCKS = 128
"""Every block costs a matrix product of its own; with more blocks than this the products are too thin to pay."""


def choose_storage(draft: Draft, sites: Sequence[Site], layout: str, states: States) -> dict[str, Tensor]:
    """Decide how each widened weight is stored, before anything is put in place.

    Args:
        draft: The expansion, worked out and not yet committed.
        sites: The sites that are split.
        layout: ``"grouped"`` asks for blocks in every producer, and takes them elsewhere if it can; all others for
        none.
        states: Optimizer state that follows its weights.

    Returns:
        The structure of each weight that goes into blocks, by the name of its module.

    Raises:
        ValueError: If ``"grouped"`` was asked for and the weight of a producer cannot be stored in blocks.
    """
    if layout != "grouped":
        return {}
    producers = {producer.parameter: site for site in sites for producer in site.producers}
    structures: dict[str, Tensor] = {}
    for name, tensor in draft.tensors.items():
        found = _structure(draft, tensor, states)
        if isinstance(found, Tensor):
            structures[tensor.owner] = found
        elif name in producers:
            raise ValueError(
                f'layout="grouped" was asked for {producers[name].name}, but `{name}` cannot be stored in blocks: '
                f"{found}."
            )
    return structures


def _structure(draft: Draft, tensor: DraftTensor, states: States) -> Tensor | str:
    """The structure of a weight, or why it has none."""
    module = draft.model.get_submodule(tensor.owner)
    if tensor.name != "weight" or not isinstance(tensor.original, nn.Parameter):
        return "it is no weight of a layer"
    reason = cannot_group(module) or _read_elsewhere(draft.model, tensor.owner)
    if reason:
        return reason
    if tensor.mask is None:
        return "it is dense"
    for optimizer, parameter, state in states:
        if parameter is tensor.original and any(_is_factored(value, tensor.value) for value in state.values()):
            return f"{type(optimizer).__name__} keeps state of rows and columns, which blocks do not have"
    candidates = [find_blocks(tensor.mask.flatten(2).any(2) if tensor.mask.dim() > 2 else tensor.mask)]
    if tensor.block and len(tensor.mask) % tensor.block == 0:
        rows = tensor.mask.view(len(tensor.mask) // tensor.block, tensor.block, tensor.mask.shape[1], -1)
        candidates.append(rows.any(3).any(1))
    few = [c for c in candidates if len(c) <= MOST_BLOCKS and 2 * len(c) <= len(tensor.mask)]
    if not few:
        return (
            f"its {len(tensor.mask)} neurons have {len(candidates[-1])} different sets of inputs; use a partition that "
            'neurons share, such as partition="shared:4" or "contiguous:4"'
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        few = [candidate for candidate in few if bool(candidate.any(1).all())]
        if not few:
            return "some block of channels reads no input at all"
    best = min(few, key=lambda inputs: count_blocks(inputs, len(tensor.value)))
    if count_blocks(best, len(tensor.value)) == len(tensor.value) * tensor.value.shape[1]:
        return "every block reads every input"
    return best


def _is_factored(value: object, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.numel() > 1 and value.shape != weight.shape


def _read_elsewhere(model: nn.Module, owner: str) -> str | None:
    """Torch's own encoder layer hands the weights of its children to a fused kernel when it evaluates."""
    parent = model.get_submodule(owner.rpartition(".")[0]) if owner else None
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads the weight without calling the layer that owns it"
    return None
