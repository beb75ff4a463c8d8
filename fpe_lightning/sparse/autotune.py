"""Time the layouts that can hold a layer, and pick the fastest: ``layout="auto"``.

Which layout is fastest depends on shape, batch, dtype and machine in ways that no simple rule gets right. But two
layouts round differently, so a choice by the clock makes a run depend on it. Therefore

- nothing is timed unless ``"auto"`` is asked for by name; the default is a fixed rule;
- a clock decides how a structure is stored, never which weights it keeps;
- the choice is part of the structure that a ``state_dict`` holds: a model that loads it computes as it says, untimed;
- under ``torch.distributed`` rank 0 decides, and tells the others;
- a comparison is made once: it is remembered in a small file (see :mod:`fpe_lightning.sparse.choices`).
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fpe_lightning.sparse.choices import Choice, ChoiceFile, decided_by_rank_0
from fpe_lightning.sparse.convert import dense_mask, store
from fpe_lightning.sparse.layout import LAYOUTS, Storage, layout_of
from fpe_lightning.sparse.masked import mask_of
from fpe_lightning.sparse.timing import measure

log = logging.getLogger(__name__)

MARGIN = 0.97
"""Another layout has to take less than this share of the masked one's time: a tie is no reason to change anything."""


def storages_of(module: nn.Module) -> list[Storage]:
    """Every way to store a layer's weight, other than masked, that can hold it.

    Example:
        >>> storages_of(nn.Linear(4, 2))
        []
    """
    if "weight" not in module._parameters or (mask := dense_mask(module)) is None:
        return []
    fits = {name: LAYOUTS.get(name).fit(module, mask) for name in LAYOUTS if name != "masked"}
    return [Storage(name, found) for name, found in fits.items() if not isinstance(found, str)]


def choose_fastest(
    model: nn.Module,
    storages: Mapping[str, Iterable[Storage]],
    reads: Mapping[str, tuple[int, ...]],
    file: ChoiceFile | None = None,
) -> dict[str, Choice]:
    """Time some layers of a model in every layout that can hold them; nothing is changed.

    Args:
        model: In training mode training steps (forward, backward, AdamW) are timed, else forward passes.
        storages: Ways to store each layer besides the masked one, by the layer's name.
        reads: Shape of the input of each of them. A layer whose input is not known stays masked.
        file: Earlier choices; None takes the cache directory's.

    Returns:
        The fastest layout of each layer, with the times; the same on every process.
    """
    file = file or ChoiceFile()

    def decide() -> dict[str, Choice]:
        found = {}
        for name, options in storages.items():
            by_name = {storage.layout: storage for storage in options}
            module = model.get_submodule(name)
            if name in reads:
                found[name] = _choose(module, by_name, reads[name], model.training, file)
            else:
                log.info("layout of %s stays masked: it is not known what the layer reads", name)
                found[name] = Choice("masked", {})
        return found

    return decided_by_rank_0(decide)


def tune(
    model: nn.Module,
    example_inputs: Any,
    optimizers: Iterable[Optimizer] = (),
    file: ChoiceFile | None = None,
) -> dict[str, Choice]:
    """Store every sparse layer of a model in the layout that is fastest for given inputs, in place.

    Call it after ``model.eval()`` with a batch such as inference is going to see, after ``model.to(...)`` too: a layout
    that wins in training, or in another dtype, need not win there. Outputs stay equal to rounding.

    Args:
        model: In training mode training steps (forward, backward, AdamW) are timed, else forward passes.
        example_inputs: The inputs of its forward: a tensor, or a tuple of arguments. It is run once, without gradients.
        optimizers: Optimizers that hold the weights; they are kept valid.
        file: Earlier choices; None takes the cache directory's.

    Returns:
        The choice for each layer, with the times.

    Example:
        >>> tune(nn.Linear(4, 2).eval(), torch.zeros(1, 4))  # nothing is sparse here
        {}
    """
    # One run notes the shape that each sparse layer reads.
    storages = {name: found for name, module in model.named_modules() if (found := storages_of(module))}
    reads: dict[str, tuple[int, ...]] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: reads.setdefault(name, tuple(args[0].shape)) and None
        )
        for name in storages
    ]
    try:
        with torch.no_grad():
            model(*example_inputs) if isinstance(example_inputs, tuple) else model(example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    choices = choose_fastest(model, storages, reads, file)
    for name, choice in choices.items():
        if name in reads:
            structures = {storage.layout: storage.structure for storage in storages[name]}
            store(model.get_submodule(name), choice.layout, structures.get(choice.layout), optimizers)
    return choices


def _choose(
    module: nn.Module, by_name: Mapping[str, Storage], reads: tuple[int, ...], training: bool, file: ChoiceFile
) -> Choice:
    # Copies are timed, so that the layer keeps its hooks, gradients and state.
    layers = _candidates(module, by_name)
    if len(layers) == 1:
        return Choice("masked", {})
    reads = _as_wide(layers["masked"], reads)
    key = _key(layers, reads, training)
    # A choice that was made once is made again, whatever the clock says today.
    known = file.load().get(key)
    if known is not None and known.layout in layers:
        log.info("layout of %s, measured before: %s", _shape(module), known)
        return known
    times = measure(layers, reads, training)
    best = min(times, key=lambda name: times[name])
    # The masked layout wins ties.
    choice = Choice(best if times[best] < MARGIN * times["masked"] else "masked", times)
    log.info("layout of %s: %s", _shape(module), choice)
    file.remember(key, choice)
    return choice


def _as_wide(layer: nn.Module, reads: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the input now: the one noted before a split may have been narrower."""
    weight = layer.get_parameter("weight")
    axis = len(reads) - (weight.dim() - 1)  # the last one, or the one before the extent of a picture
    return (*reads[:axis], weight.shape[1], *reads[axis + 1 :])


def _candidates(module: nn.Module, by_name: Mapping[str, Storage]) -> dict[str, nn.Module]:
    """A copy of the layer in every layout whose kernels there are."""
    layers: dict[str, nn.Module] = {}
    device = module.get_parameter("weight").device
    for name, storage in {"masked": Storage("masked", {}), **by_name}.items():
        if reason := LAYOUTS.get(name).no_kernel(device):
            kind = LAYOUTS.get(name).kind
            log.info("layout %s of %s is left out: there are no %s kernels, %s", name, _shape(module), kind, reason)
            continue
        layers[name] = _without_hooks(module)
        store(layers[name], name, storage.structure)
    return layers


def _without_hooks(module: nn.Module) -> nn.Module:
    """A copy of one layer with tensors of its own, and without hooks of others."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if "hooks" in name and isinstance(value, dict):
            vars(twin)[name] = type(value)()
    twin._parameters = {
        name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        for name, value in module._parameters.items()
    }
    twin._buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
    return twin


def _shape(module: nn.Module) -> str:
    rows, inputs, *_ = layout_of(module).dense_shape(module)
    return f"{rows} x {inputs} weight"


def _key(layers: Mapping[str, nn.Module], reads: tuple[int, ...], training: bool) -> str:
    """Everything that a time depends on, apart from the machine."""
    weight = layers["masked"].get_parameter("weight")
    kind = weight.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return json.dumps(
        {
            "layers": {name: _description(layer) for name, layer in layers.items()},
            "reads": list(reads),
            "dtype": str(weight.dtype),
            "autocast": str(autocast),
            "device": kind,
            "threads": torch.get_num_threads(),
            "work": "training step" if training else "forward",
        },
        sort_keys=True,
    )


def _description(layer: nn.Module) -> str:
    words = [str(layer), str(tuple(layer.get_parameter("weight").shape)), layout_of(layer).detail(layer)]
    return " ".join(filter(None, words)) + ("" if mask_of(layer) is None else " masked")
