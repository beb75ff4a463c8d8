"""Compare what a checkpoint says of a module with its tensors, before anything is built from it.

Every refusal here is a ``ValueError`` that begins with "The checkpoint is broken".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.expansion.draft import plain
from fpe_lightning.sparse.layout import LAYOUTS, MASKED, Layout, Structure, is_structure, layout_of
from fpe_lightning.sparse.memory import not_of_its_own
from fpe_lightning.sparse.record import RECORD, Record

NO_WIDTHS = frozenset(vars(nn.Module())) | {"training", "_version"}
"""Attributes of every module, none of which counts units."""


def check_tensors(path: str, theirs: Mapping[str, Tensor], own: Mapping[str, Tensor], values: bool = False) -> None:
    """Refuse tensors that ask for more memory than the file has, and integers in place of weights.

    Args:
        path: The prefix of the module's names in the checkpoint.
        theirs: Tensors of the checkpoint, by their names within the module.
        own: Those of the module.
        values: Whether weights need values now. Those of a sharded checkpoint follow when the structure is there.

    Raises:
        ValueError: Naming the first.
    """
    for name, tensor in theirs.items():
        if hasattr(tensor, "_load_tensor"):  # still in its file
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"The checkpoint is broken: `{path}{name}` is a {type(tensor).__name__}, and no tensor.")
        if tensor.is_meta and (is_structure(name) or (values and name in own and not own[name].is_meta)):
            raise ValueError(f"The checkpoint is broken: `{path}{name}` is on the meta device and has no values.")
        if reason := not_of_its_own(tensor):
            raise ValueError(f"The checkpoint is broken: `{path}{name}` cannot be copied, as {reason}.")
        mine = None if is_structure(name) else own.get(name)
        if mine is not None and (tensor.is_floating_point(), tensor.is_complex()) != (
            mine.is_floating_point(),
            mine.is_complex(),
        ):
            raise ValueError(f"The checkpoint is broken: `{path}{name}` is {tensor.dtype}, and {mine.dtype} here.")


def layout_in(state_dict: Mapping[str, Tensor], path: str) -> tuple[Layout, Structure]:
    """How a checkpoint stores the weight of one module.

    Args:
        state_dict: The checkpoint.
        path: The prefix of the module's own names, such as ``"net.0."``.

    Raises:
        ValueError: If the structure in there is none of its layout.

    Example:
        >>> layout_in({"net.0.weight": torch.zeros(2, 4)}, "net.0.") == (MASKED, {})
        True
    """
    for layout in map(LAYOUTS.get, LAYOUTS):
        found = {name: state_dict[path + name] for name in layout.buffers if path + name in state_dict}
        if found and len(found) == len(layout.buffers):
            why = next(filter(None, map(not_of_its_own, found.values())), None) or layout.malformed(found)
            if why is not None:
                raise ValueError(f"The checkpoint is broken: `{path}{next(iter(found))}` is no structure, as {why}.")
            return layout, found
    return MASKED, {}


def largest_growth(state_dict: Mapping[str, Tensor], prefix: str) -> float:
    """How many times as large as before its first split an axis of a saved tensor is at most.

    What has no tensor in the checkpoint (integers, and buffers that are not saved) cannot have grown more.

    Args:
        state_dict: The checkpoint.
        prefix: The prefix of the model's own names in it.

    Example:
        >>> from fpe_lightning.sparse.record import Split
        >>> record = Record({"bias": [8]}, {"bias": [Split(0, 0, 8, 1, 2)]}, {})
        >>> largest_growth({"0.bias": torch.zeros(16), "0.fpe_record": record.encode()}, "")
        2.0
    """
    growth = 1.0
    for key in state_dict:
        path, dot, name = str(key).rpartition(".")
        if name == RECORD and key.startswith(prefix):
            for before, after in _sizes(Record.decode(state_dict[key], key), state_dict, path + dot):
                growth = max(growth, *(now / max(was, 1) for was, now in zip(before, after, strict=True)), 1.0)
    return growth


def _sizes(record: Record, state_dict: Mapping[str, Tensor], path: str) -> Iterator[tuple[list[int], Sequence[int]]]:
    """The shapes of the tensors that are as their record says: before the first split, and now."""
    for name, before in record.shapes.items():
        tensor, after = state_dict.get(path + name), torch.Size(record.shape_now(name))
        in_its_file = hasattr(
            tensor, "_load_tensor"
        )  # as Fabric reads lazily: it has a shape, and no memory to ask for
        if (
            tensor is None or (not in_its_file and not_of_its_own(tensor)) or 0 in tensor.shape
        ):  # without entries, no proof
            continue
        layout, structure = layout_in(state_dict, path) if name == "weight" else (MASKED, {})
        try:
            stored = layout.stored_shape(structure, after)
        except ValueError:  # it is refused with its module
            continue
        if stored == getattr(tensor, "shape", None):
            yield before, after


def check_growth(path: str, before: Iterable[int], after: Iterable[int], growth: float) -> None:
    """Refuse sizes that no tensor proves, where they grew more than any tensor did.

    Args:
        path: What has the sizes.
        before: Sizes before the first split, by the record.
        after: Sizes now, by the record.
        growth: See :func:`largest_growth`.

    Raises:
        ValueError: If they did.

    Example:
        >>> check_growth("0.hidden", [8], [999], growth=2.0)
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint is broken: by its record `0.hidden` grew from 8 to 999, and no tensor grew so much.
    """
    for was, now in zip(before, after, strict=True):
        if now > max(was, 1) * growth:
            raise ValueError(
                f"The checkpoint is broken: by its record `{path}` grew from {was} to {now}, and no tensor grew so "
                "much."
            )


def check_widths(
    module: nn.Module, path: str, attributes: Mapping[str, Any], live: Record, incoming: Record, growth: float
) -> None:
    """Refuse integers that grew more than any tensor, or that the layer's weight contradicts.

    Args:
        module: The module, as it is.
        path: The prefix of its names in the checkpoint.
        attributes: The new values of its integers.
        live: The module's record.
        incoming: The record in the checkpoint.
        growth: See :func:`largest_growth`.

    Raises:
        ValueError: Naming the integer.
    """
    for name, (before, after) in incoming.attributes.items():
        check_growth(path + name, _entries(before), _entries(after), growth)
    key = "weight" if module._parameters.get("weight") is not None else "running_mean"
    if getattr(module, key, None) is None:
        return
    shape_here = layout_of(module).dense_shape(module) if key == "weight" else getattr(module, key).shape
    before_splits = live.shapes.get(key, list(shape_here))
    shape = incoming.shape_now(key) if key in incoming.shapes else tuple(before_splits)
    values = {name: getattr(module, name) for name in _implied(module, shape_here, 1)}
    fits = {name: plain(value) for name, value in values.items()} == _implied(module, shape_here, _groups(module, {}))
    if not fits:  # a layer of another author's, whose integers mean something else
        return
    for name, implied in _implied(module, shape, _groups(module, attributes)).items():
        said = plain(attributes.get(name, values[name]))
        if said != implied:
            raise ValueError(
                f"The checkpoint is broken: `{path}{key}` has shape {tuple(shape)}, and its record says {name}={said}."
            )


def _implied(module: nn.Module, shape: Sequence[int], groups: int) -> dict[str, int | list[int]]:
    """What the integers of one of torch's layers are for a weight of this shape."""
    if isinstance(module, nn.Linear) and len(shape) == 2:
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.modules.conv._ConvNd) and len(shape) > 2:
        names = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
        return {names[0]: shape[0], names[1]: shape[1] * groups}
    if isinstance(module, nn.Embedding) and len(shape) == 2:
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if not len(shape):
        return {}
    norms: dict[str, int | list[int]] = dict.fromkeys(("num_features", "num_channels", "num_parameters"), shape[0])
    norms["normalized_shape"] = list(shape)
    return {name: value for name, value in norms.items() if _is_integers(getattr(module, name, None))}


def _groups(module: nn.Module, attributes: Mapping[str, Any]) -> int:
    groups = attributes.get("groups", getattr(module, "groups", 1))
    return groups if isinstance(groups, int) else 1


def is_width(module: nn.Module, name: str, value: int | list[int]) -> bool:
    """Whether an attribute of a module may count units: an integer, or several as a value of a record has them.

    Example:
        >>> is_width(nn.Linear(4, 2), "out_features", 4), is_width(nn.Linear(4, 2), "training", 1)
        (True, False)
    """
    here: Any = getattr(module, name, None)
    if name in NO_WIDTHS or not _is_integers(here):
        return False
    return type(here) is int if isinstance(value, int) else type(here) is not int and len(here) == len(value)


def _is_integers(value: Any) -> bool:
    return type(value) is int or (isinstance(value, (tuple, list)) and all(type(each) is int for each in value))


def _entries(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else value
