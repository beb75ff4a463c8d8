"""``from_pretrained`` of transformers and diffusers, which fills a model without ``load_state_dict``."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fpe_lightning.checkpoints.names import StructureError, is_expanded
from fpe_lightning.checkpoints.read import read_checkpoint
from fpe_lightning.checkpoints.restore import restore_structure
from fpe_lightning.sparse.prepared import PreparedModule
from fpe_lightning.sparse.record import RECORD

LIBRARIES = {
    "transformers": ("transformers.modeling_utils", "PreTrainedModel"),
    "diffusers": ("diffusers.models.modeling_utils", "ModelMixin"),
}
"""Where each library has the class of its models."""
METHOD = "_load_pretrained_model"
"""The method by which both fill a model that is built, from files that are found."""
FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def patch_pretrained(patches: ExitStack, is_on: Callable[[], bool]) -> None:
    """Let the libraries that are imported restore structures first; once each.

    Args:
        patches: Undoes it when it is closed.
        is_on: Whether to do so now.
    """
    for library, (module, name) in LIBRARIES.items():
        if library not in sys.modules:
            continue
        try:
            base = getattr(importlib.import_module(module), name)
        except (ImportError, RuntimeError):  # not installed whole, such as without torch
            continue
        method = vars(base).get(METHOD)
        if isinstance(method, (classmethod, staticmethod)) and not hasattr(method.__func__, "fpe_patched"):
            setattr(base, METHOD, type(method)(_restoring(method.__func__, is_on)))
            patches.callback(setattr, base, METHOD, method)


def _restoring(original: Callable[..., Any], is_on: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        model = next((each for each in given if isinstance(each, nn.Module)), None)
        if is_on() and model is not None:
            restore_pretrained(model, _converted(model, _incoming(given)))
            result = original(*args, **kwargs)
            _prepare(model)
            return result
        return original(*args, **kwargs)

    load_pretrained_model.fpe_patched = True  # type: ignore[attr-defined]
    return load_pretrained_model


def restore_pretrained(model: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Give a model the structure of weights whose names may have the model's prefix more or less.

    Args:
        model: Of transformers or diffusers.
        state_dict: Of the same model, or of one with another head.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: If a split module of the file is not in the model.
    """
    if not is_expanded(state_dict):
        return False
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = {name for name, _ in model.named_modules()}
    split = {key.rpartition(".")[0] for key in state_dict if key.rpartition(".")[2] == RECORD}
    for rename in (str, lambda name: prefix + name, lambda name: name.removeprefix(prefix)):
        if not names.isdisjoint(map(rename, split)):
            return restore_structure(model, {rename(key): tensor for key, tensor in state_dict.items()})
    raise StructureError(
        f"The weights were split at `{min(split)}`, and {type(model).__name__} has no such module: load them by the "
        "class that they were saved by."
    )


def _incoming(given: list[Any]) -> dict[str, Tensor]:
    """The weights among the arguments of a loader: in a ``state_dict``, or in files."""
    state: dict[str, Tensor] = {}
    for value in given:
        if isinstance(value, Mapping) and value and all(isinstance(each, Tensor) for each in value.values()):
            state.update(value)
        for path in _files(value):
            state.update(read_checkpoint(path))
    return state


def _files(value: Any) -> Iterator[Path]:
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, (str, Path)) and str(each).endswith(FILES) and Path(each).is_file():
            yield Path(each)


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the names and shapes of the model, where transformers saves them as older versions did.

    Names of modules changed, and the weights of experts are saved one by one. transformers converts both as it fills
    the model; the structure has to be known before.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
        from transformers.modeling_utils import PreTrainedModel
    except ImportError:  # before version 5, or diffusers alone
        return state
    if not is_expanded(state) or not isinstance(model, PreTrainedModel):
        return state
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    # 1. Most tensors get another name at most; those of experts are gathered.
    result: dict[str, Tensor] = {}
    gathered: dict[str, Any] = {}
    for key in sorted(state, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters)
        if pattern is None:
            result[name] = state[key]
        else:
            gathered.setdefault(name, copy.deepcopy(by_pattern[pattern])).add_tensor(name, key, pattern, state[key])
    # 2. Gathered tensors become one.
    for name, converter in gathered.items():
        for target, value in converter.convert(name, model=model, config=model.config).items():
            result[target] = value[0] if isinstance(value, list) else value
    return result


def _prepare(model: nn.Module) -> None:
    """Let layers prepare again, as their buffers were filled directly."""
    for module in model.modules():
        if isinstance(module, PreparedModule):
            module.prepare()
