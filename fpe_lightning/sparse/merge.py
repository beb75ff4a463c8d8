"""Merge adapters into split layers, and widen or enforce masks that no longer hold."""

from __future__ import annotations

from typing import Any, Literal

import torch

from fpe_lightning.sparse.convert import store
from fpe_lightning.sparse.guard import zero_masked_
from fpe_lightning.sparse.layout import MASKED, layout_of
from fpe_lightning.sparse.masked import set_mask
from fpe_lightning.sparse.model_masks import masked_parameters


def merge(model: Any, keep: Literal["outputs", "masks"] = "outputs") -> Any:
    """Merge the adapters of a model (PEFT), if it has some, and make masks and weights agree again.

    The update of a LoRA adapter is dense, so a merged weight has more non-zeros than the split layer. Either the masks
    grow with it, and the model computes the same as with its adapter; or the masks stay, and the update loses its
    masked entries. Layers in another layout are stored masked first, as that alone holds any mask.

    Args:
        model: A model with split layers: one that PEFT wraps, or any other whose weights something has written to.
        keep: ``"outputs"`` lets every entry be non-zero that is; ``"masks"`` sets masked entries to zero.

    Returns:
        The model without its adapters (as from ``merge_and_unload()``), or the model itself.

    Raises:
        ValueError: If ``keep`` is neither.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 2)
        >>> set_mask(layer, "weight", torch.eye(2, 4, dtype=torch.bool))
        >>> _ = layer.weight.data.fill_(1.0)
        >>> int(merge(layer, keep="masks").weight.count_nonzero())
        2
    """
    if keep not in ("outputs", "masks"):
        raise ValueError(f'`keep` has to be "outputs" or "masks", found {keep!r}.')
    if hasattr(model, "merge_and_unload"):
        for module in model.modules():
            if layout_of(module) is not MASKED:
                store(module)
        model = model.merge_and_unload()
    for name, parameter, mask in list(masked_parameters(model)):
        if keep == "masks":
            zero_masked_(parameter.data, mask)
            continue
        owner, _, key = name.rpartition(".")
        grown = mask | (parameter.detach() != 0)
        module = model.get_submodule(owner)
        if not torch.equal(grown, mask):
            if layout_of(module) is not MASKED:
                store(module)
            set_mask(module, key, None if bool(grown.all()) else grown)
    return model
