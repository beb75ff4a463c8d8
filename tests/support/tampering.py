"""Changes of a ``state_dict`` that nobody who trains makes: by damage, by a mistake, or on purpose."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpe_lightning.sparse.record import RECORD

State = dict[str, Any]
VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 64, 999, -1, -8, 10**6, 10**9, 2**62, 2**70),
    *(True, False, None, "2", "weight", 2.0, 1e30, float("nan"), [], [8], [1, 2], [16, 16], {}, {"a": 1}),
)
NAMES = (
    *("forward", "training", "__class__", "_version", "_parameters", "in_features", "out_features", "kernel_size"),
    *("padding", "stride", "groups", "out_channels", "num_features", "width", "weight", "bias", "nothing", "../x", ""),
)


def text_of(bits: Tensor) -> bytes:
    """The JSON of a record."""
    return np.packbits(bits.numpy().astype(np.uint8)).tobytes()


def bits_of(text: bytes) -> Tensor:
    """The inverse of :func:`text_of`."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(text, np.uint8)).astype(bool))


def tamper(state: State, draw: random.Random) -> str:
    """Change one thing of a ``state_dict`` in place, and say what."""
    records = [key for key in state if key.rpartition(".")[2] == RECORD and _is_whole(state[key])]
    if records and draw.random() < 0.5:
        key = draw.choice(records)
        return f"{key}: {_tamper_record(state, key, draw)}"
    key = draw.choice([key for key in state if _is_ordinary(state[key])] or ["x"])
    name = draw.choice(list(TENSORS))
    state[key] = TENSORS[name](state.get(key, torch.zeros(2)), draw)
    if name == "delete":
        del state[key]
    if name == "rename":
        state[f"{key}{draw.choice(['x', '.x', '_orig'])}"] = state.pop(key)
    if name == "swap":
        other = draw.choice(list(state))
        state[key], state[other] = state[other], state[key]
    return f"{key}: {name}"


def _is_ordinary(tensor: Any) -> bool:
    """Whether an entry can be tampered with once more."""
    ordinary = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return ordinary and tensor.numel() < 10**6


def _is_whole(bits: Any) -> bool:
    """Whether a record was not tampered with as a tensor before."""
    return _is_ordinary(bits) and bits.dtype == torch.bool and bits.dim() == 1 and len(bits) > 8


def _tamper_record(state: State, key: str, draw: random.Random) -> str:
    text = text_of(state[key])
    kind = draw.choice(["byte", "bit", "cut", "value", "value", "value", "value", "key", "key", "add", "delete"])
    if kind in ("byte", "bit"):
        changed = bytearray(text)
        place = draw.randrange(len(changed))
        changed[place] = draw.randrange(256) if kind == "byte" else changed[place] ^ (1 << draw.randrange(8))
        state[key] = bits_of(bytes(changed))
        return f"{kind} {place}"
    if kind == "cut":
        state[key] = bits_of(text[: draw.randrange(len(text))])
        return kind
    try:
        record = json.loads(text)
    except ValueError:  # tampered with before
        return "nothing"
    places = list(_places(record))
    if not places:
        return "nothing"
    holder, place = draw.choice(places)
    if kind == "value":
        old = holder[place]
        near = isinstance(old, int) and draw.random() < 0.6
        holder[place] = draw.choice([old + 1, old - 1, 2 * old, old // 2, -old]) if near else draw.choice(VALUES)
    elif kind == "key" and isinstance(holder, dict):
        holder[draw.choice(NAMES)] = holder.pop(place)
    elif kind == "add" and isinstance(holder, dict):
        holder[draw.choice(NAMES)] = draw.choice([draw.choice(VALUES), [8, 16], [2, 4], holder[place]])
    elif kind == "add":
        holder.append(holder[place])
    else:
        del holder[place]
    state[key] = bits_of(json.dumps(record).encode())
    return f"{kind} {place}"


def _places(found: Any) -> Any:
    for place in list(found) if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ():
        yield found, place
        yield from _places(found[place])


def _resized(tensor: Tensor, draw: random.Random) -> Tensor:
    if not tensor.dim():
        return torch.zeros(2)
    dim = draw.randrange(tensor.dim())
    size = max(draw.choice([0, 1, tensor.shape[dim] - 1, tensor.shape[dim] + 1, 2 * tensor.shape[dim]]), 0)
    return tensor.new_zeros([size if each == dim else old for each, old in enumerate(tensor.shape)])


def _noise(tensor: Tensor, draw: random.Random) -> Tensor:
    generator = torch.Generator().manual_seed(draw.randrange(99))
    return (torch.rand(tensor.shape, generator=generator) * 255).to(tensor.dtype)


def _dtype(tensor: Tensor, draw: random.Random) -> Tensor:
    kinds = (torch.int8, torch.bool, torch.float64, torch.float16, torch.complex64, torch.int64)
    return tensor.to(draw.choice(kinds))


def _flipped(tensor: Tensor, draw: random.Random) -> Tensor:
    return -tensor if tensor.is_floating_point() else tensor.bitwise_not()


def _bomb(tensor: Tensor, draw: random.Random) -> Tensor:
    """Many rows, or as many as there were, all of which are one number in memory."""
    if not tensor.dim() or not tensor.numel():
        return tensor
    rows = draw.choice([10**10, len(tensor)])
    return tensor.new_zeros([1] * tensor.dim()).expand(rows, *tensor.shape[1:])


TENSORS: dict[str, Callable[[Tensor, random.Random], Any]] = {
    **dict.fromkeys(("delete", "rename", "swap"), lambda tensor, draw: tensor),
    "resize": _resized,
    "flatten": lambda tensor, draw: tensor.flatten(),
    "another axis": lambda tensor, draw: tensor[None],
    "transpose": lambda tensor, draw: tensor.transpose(0, -1) if tensor.dim() > 1 else tensor,
    "dtype": _dtype,
    "flip": _flipped,
    "noise": _noise,
    "nan": lambda tensor, draw: tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(0),
    "zero": lambda tensor, draw: torch.zeros_like(tensor),
    "empty": lambda tensor, draw: tensor.new_zeros(0),
    "meta": lambda tensor, draw: tensor.to("meta"),
    "bomb": _bomb,
    "sparse": lambda tensor, draw: tensor.to_sparse() if tensor.dim() else tensor,
    "no tensor": lambda tensor, draw: draw.choice([None, 3, "x", [1, 2], np.zeros(3)]),
}
