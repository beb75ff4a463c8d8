"""The trained model as ordinary layers, in memory or in a file: nothing of this package is needed to use it."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fpe_lightning.arguments import check_module
from fpe_lightning.checkpoints.load_hook import forget_hook
from fpe_lightning.sparse.convert import is_sharded, store
from fpe_lightning.sparse.guard import GUARDED, GradientMask
from fpe_lightning.sparse.layout import MASKED, layout_of
from fpe_lightning.sparse.masked import mask_of, set_mask
from fpe_lightning.sparse.record import RECORD, record_of
from fpe_lightning.sparse.semi_structured.packed import unpack_for_training

HOW = """Build the model as its class builds it, then give it these widths and weights:

saved = torch.load(FILE, weights_only=True)
for path, values in saved["attributes"].items():
    for name, value in values.items():
        setattr(model.get_submodule(path), name, value)
for path, tensor in saved["state_dict"].items():
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    old = getattr(module, name)
    if old.shape != tensor.shape:
        setattr(module, name, torch.nn.Parameter(tensor) if isinstance(old, torch.nn.Parameter) else tensor)
model.load_state_dict(saved["state_dict"])
"""


def plain(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model as ordinary wide layers: classes of torch, without masks, records and hooks.

    Masked weights are zeros of an ordinary weight, bit by bit what they were; weights in blocks and in 2:4 form are
    unpacked; tied weights stay tied. It computes the same to rounding. A masked weight trains as any other, so it is
    a result, for inference, export, and for people who do not have this package.

    Args:
        model: Any module, such as a whole LightningModule; its Trainer is not copied.
        inplace: Whether to change ``model`` itself, whose optimizers then hold parameters that it no longer has; by
            default a deep copy is made.

    Returns:
        The plain model.

    Raises:
        ValueError: If the weights are in shards on several processes.

    Example:
        >>> import fpe_lightning as fpe
        >>> model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> _ = fpe.expand(model, alpha=2, example_inputs=torch.randn(1, 64))
        >>> plain(model)
        Sequential(
          (0): Linear(in_features=64, out_features=16, bias=True)
          (1): ReLU()
          (2): Linear(in_features=16, out_features=3, bias=True)
        )
    """
    check_module(model)
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ValueError(
                f"`{name}` is in shards on several processes; load a full checkpoint on one process and call `plain` "
                "there."
            )
    if not inplace:
        model = copy.deepcopy(model, _not_copied(model))
    # Packed first, as they have no parameter; then layouts, masks, records and hooks of ours.
    unpack_for_training(model)
    for module in model.modules():
        if layout_of(module) is not MASKED:
            store(module, "masked")
        for name in list(module._parameters):
            if mask_of(module, name) is not None:
                set_mask(module, name, None)
        module._buffers.pop(RECORD, None)
        forget_hook(module)
        # A hook would mask the gradients of a training of the result.
        for held in module._parameters.values():
            if held is not None:
                _unguard(held)
    return model


def _unguard(parameter: nn.Parameter) -> None:
    """Take away the hooks that mask gradients."""
    hooks = parameter._backward_hooks or {}
    for key in [key for key, hook in hooks.items() if isinstance(hook, GradientMask)]:
        del hooks[key]
    vars(parameter).pop(GUARDED, None)


def save_plain(model: nn.Module, path: str | Path) -> None:
    """Write a plain model to a file that torch reads without this package.

    The file is a dict of plain types, for ``torch.load(path, weights_only=True)``:

    - ``"state_dict"``: weights as :func:`plain` gives them, with the names of the model;
    - ``"attributes"``: by the name of each module that grew its integers that did, such as ``out_features``;
    - ``"how_to_build"``: a few lines of torch that give the model as its class builds it these widths and weights.

    Args:
        model: Any module; it is not changed.
        path: The file; one that is there is replaced once the new one is whole. Its directory is made.

    Raises:
        ValueError: If the weights are in shards on several processes.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> save_plain(nn.Linear(4, 2), f"{folder}/plain.pt")
        >>> sorted(torch.load(f"{folder}/plain.pt", weights_only=True))
        ['attributes', 'how_to_build', 'state_dict']
    """
    path = Path(path)
    attributes = {name: found for name, module in model.named_modules() if (found := _attributes(module))}
    # Buffers and parameters that two names share are stored once by torch.
    state = {name: tensor.detach().cpu() for name, tensor in plain(model).state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written next to the file and renamed: a crash leaves the old file whole.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"state_dict": state, "attributes": attributes, "how_to_build": HOW}, file)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Integers and tuples of a module that grew, as they are now."""
    record = record_of(module)
    return {} if record is None else {name: getattr(module, name) for name in record.attributes}


def _not_copied(model: nn.Module) -> dict[int, Any]:
    """What ``deepcopy`` takes as it is given here, by id.

    A Trainer brings its data and its loggers along, so None replaces it. Tensors of a graph (outputs that a module
    keeps for the end of an epoch) cannot be copied, and keep their values alone.
    """
    held = [vars(module).get(name) for module in model.modules() for name in ("_trainer", "_fabric")]
    memo: dict[int, Any] = {id(each): None for each in held if each is not None}
    seen = set(memo)
    for module in model.modules():
        for tensor in (each for value in vars(module).values() for each in _tensors(value, seen)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return memo


def _tensors(value: Any, seen: set[int], depth: int = 6) -> Iterator[torch.Tensor]:
    """The tensors in containers and plain objects, which ``deepcopy`` would meet."""
    if id(value) in seen or not depth or isinstance(value, (nn.Module, type, str, int, float)):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = value
    elif hasattr(value, "__dict__"):
        inner = vars(value).values()
    for each in list(inner):
        yield from _tensors(each, seen, depth - 1)
