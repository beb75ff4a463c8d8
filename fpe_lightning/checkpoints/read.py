"""Read checkpoints of any format, and rebuild a model's structure from one before its weights are loaded."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fpe_lightning.checkpoints.file import check_checkpoint_file
from fpe_lightning.checkpoints.restore import restore_structure

WEIGHTS = ("model", "pytorch_model", "diffusion_pytorch_model")
"""The file names of ``save_pretrained`` in transformers and diffusers."""


def restore_structure_from_file(model: nn.Module, path: str | Path, weights_only: bool = True) -> bool:
    """Give a model the widths and masks of a checkpoint file, whose weights are loaded later, by ``fit`` for example.

    Args:
        model: Changed in place; narrow or wide.
        path: A file: a checkpoint of Lightning, a ``state_dict`` that torch saved in any of its formats, or
            safetensors; or a folder that ``save_pretrained`` wrote.
        weights_only: As in ``torch.load``; False also loads files that hold more than plain types, and runs code in
            them.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: If the file is missing or broken, or is of another network.

    Example:
        >>> restore_structure_from_file(nn.Linear(4, 2), "no/such.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: There is no checkpoint at no/such.ckpt; check the path.
    """
    return restore_structure(model, weights_in(read_checkpoint(Path(path), weights_only), Path(path)))


def read_checkpoint(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint; tensors are mapped into memory until they are used, where the format allows it.

    Args:
        path: A file, or a folder that ``save_pretrained`` wrote.
        weights_only: As in ``torch.load``.

    Raises:
        ValueError: If it is missing, broken, a directory of another kind, or holds more than plain types.
    """
    kind = check_checkpoint_file(path, safetensors=True)
    if kind == "folder":
        return {
            name: tensor for file in _files_in(path) for name, tensor in read_checkpoint(file, weights_only).items()
        }
    try:
        if kind == "safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        if "truncated" not in str(error):
            raise ValueError(
                f"{path} holds more than plain types and tensors; if you trust it, pass `weights_only=False`."
            ) from error
        raise ValueError(f"{path} was cut off while it was written; use another checkpoint.") from error
    except (SafetensorError, EOFError, RuntimeError, struct.error, IndexError) as error:
        raise ValueError(f"{path} cannot be read, or was cut off while it was written ({error}).") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint; check the path.")
    return checkpoint


def weights_in(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights that were trained; averaging callbacks of Lightning keep them next to the average.

    Raises:
        ValueError: If there are none.
    """
    state = checkpoint.get("current_model_state", checkpoint.get("state_dict", checkpoint))
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        found = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(f"{path} is no checkpoint of Lightning and no `state_dict`: it holds {found}.")
    return state


def _files_in(folder: Path) -> list[Path]:
    """The files of weights in a folder, of which an index lists the shards."""
    for name in WEIGHTS:
        for suffix in (".safetensors", ".bin"):
            index = folder / f"{name}{suffix}.index.json"
            if index.is_file():
                return [folder / shard for shard in sorted({*json.loads(index.read_text())["weight_map"].values()})]
            if (folder / f"{name}{suffix}").is_file():
                return [folder / f"{name}{suffix}"]
    raise ValueError(
        f"{folder} is the directory of a sharded checkpoint; save a full one, or make one file of it with "
        f"`python -m lightning.pytorch.utilities.consolidate_checkpoint {folder}`."
    )
