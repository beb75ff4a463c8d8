"""The history of a module: its shapes before the first split, every split, and the integers that grew.

The record is a buffer, so that a ``state_dict`` alone tells how to rebuild (or shrink) the module that it fits. It is
JSON held as single bits in a bool tensor: weight averaging, ``.half()`` and device moves leave bools as they are,
while averaging two equal integers in floating point may not.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fpe_lightning.sparse.history import impossible
from fpe_lightning.sparse.memory import not_of_its_own

RECORD = "fpe_record"
"""Name of the buffer."""


def run_index(length: int, run: int, copies: int) -> Tensor:
    """The entries of a stretch that its widened form repeats.

    Args:
        length: Entries of the stretch.
        run: Consecutive entries that are repeated as a block; divides ``length``.
        copies: How often each block is repeated (alpha).

    Returns:
        ``(copies * length,)`` int64.

    Example:
        >>> run_index(4, 2, 2).tolist()
        [0, 1, 0, 1, 2, 3, 2, 3]
    """
    return torch.arange(length).view(-1, 1, run).expand(-1, copies, run).reshape(-1)


@dataclass(frozen=True)
class Split:
    """One stretch of one tensor axis, each run of whose entries was repeated ``alpha`` times in place.

    Attributes:
        dim: The axis.
        start: First entry of the stretch, counted before this split.
        length: Number of entries before this split.
        run: Consecutive entries that were repeated as a block.
        alpha: Number of copies.
    """

    dim: int
    start: int
    length: int
    run: int
    alpha: int

    def index(self, size: int) -> Tensor:
        """For an axis of ``size`` entries before this split: which of them each entry after it descends from.

        Returns:
            int64 tensor of shape ``(size + (alpha - 1) * length,)``.

        Example:
            >>> Split(dim=0, start=1, length=2, run=1, alpha=2).index(4)
            tensor([0, 1, 1, 2, 2, 3])
        """
        before, entries, after = torch.arange(size).split([self.start, self.length, size - self.start - self.length])
        return torch.cat([before, entries[run_index(self.length, self.run, self.alpha)], after])

    def child(self, size: int) -> Tensor:
        """The number of the copy, ``0 .. alpha - 1``, of each entry after this split; -1 outside of the stretch.

        Example:
            >>> Split(dim=0, start=1, length=2, run=1, alpha=2).child(4)
            tensor([-1,  0,  1,  0,  1, -1])
        """
        # Runs of copy 0, copy 1 and so on, for each run of the stretch.
        copies = torch.arange(self.alpha).view(1, -1, 1).expand(self.length // self.run, -1, self.run).reshape(-1)
        outside = torch.full((size - self.length,), -1)
        return torch.cat([outside[: self.start], copies, outside[self.start :]])


@dataclass
class Record:
    """The history of one module.

    Attributes:
        shapes: Shape of each of its own tensors before the first split, by name.
        splits: Every split of each tensor, by name, oldest first.
        attributes: Integers or tuples that changed, by name: ``[value before the first split, value now]``.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    splits: dict[str, list[Split]] = field(default_factory=dict)
    attributes: dict[str, list[int | list[int]]] = field(default_factory=dict)

    def shape_now(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor after its last split.

        Example:
            >>> Record({"weight": [8, 4]}, {"weight": [Split(0, 0, 8, 1, 2)]}).shape_now("weight")
            (16, 4)
        """
        shape = list(self.shapes[name])
        for split in self.splits.get(name, []):
            shape[split.dim] += (split.alpha - 1) * split.length
        return tuple(shape)

    def parents(self, name: str, dim: int) -> Tensor:
        """Which entry before the first split each entry of a tensor axis descends from, over all splits.

        Example:
            >>> Record({"weight": [2, 4]}, {"weight": [Split(0, 0, 2, 1, 2)]}).parents("weight", 0)
            tensor([0, 0, 1, 1])
        """
        parents = torch.arange(self.shapes[name][dim])
        for split in self.splits.get(name, []):
            if split.dim == dim:
                parents = parents[split.index(len(parents))]
        return parents

    def encode(self) -> Tensor:
        """The record as a bool tensor of bits."""
        # Sorted keys, so that equal histories have equal bits on all processes.
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        return torch.from_numpy(np.unpackbits(np.frombuffer(text, np.uint8)).astype(bool))

    @classmethod
    def decode(cls, bits: Tensor, name: str = RECORD) -> Record:
        """The inverse of :meth:`encode`, of bits that are not believed: they may come from any file.

        Args:
            bits: Bool ``(bits,)``, in memory of its own.
            name: What the tensor is called where it comes from, for the message.

        Raises:
            ValueError: If the bits are not a record, or its splits cannot have happened.

        Example:
            >>> record = Record(shapes={"weight": [8, 4]}, splits={"weight": [Split(0, 0, 8, 1, 2)]})
            >>> Record.decode(record.encode()) == record
            True
        """
        reason = not_of_its_own(bits) or _no_bits(bits)
        if reason is None:
            try:  # a file may hold anything: whatever cannot be read is one kind of error
                found = json.loads(np.packbits(bits.detach().cpu().numpy()).tobytes())
                reason = impossible(found)
            except (ValueError, RecursionError) as error:
                reason = str(error)
        if reason is not None:
            size = bits.numel() if isinstance(bits, Tensor) else 0
            raise ValueError(f"The checkpoint is broken: `{name}` of {size} bits is no expansion record: {reason}.")
        splits = {key: [Split(**split) for split in history] for key, history in found["splits"].items()}
        return cls(found["shapes"], splits, found["attributes"])


def _no_bits(bits: Tensor) -> str | None:
    if bits.is_meta:
        return "it is on the meta device, where tensors have no values"
    if bits.dtype != torch.bool or bits.dim() != 1 or bits.numel() % 8:
        return f"it is {bits.dtype} {tuple(bits.shape)}"
    return None


def record_of(module: nn.Module) -> Record | None:
    """The module's own record, or None where nothing was split.

    Example:
        >>> record_of(nn.Linear(4, 2)) is None
        True
    """
    bits = module._buffers.get(RECORD)
    return None if bits is None else Record.decode(bits)


def note_shape(module: nn.Module, name: str) -> None:
    """Note that a tensor has a structure without any split, so that a dense model reads its mask from a checkpoint.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> note_shape(layer, "weight")
        >>> record_of(layer)
        Record(shapes={'weight': [2, 4]}, splits={'weight': []}, attributes={})
    """
    record = record_of(module) or Record()
    if name not in record.shapes:
        parameter = module.get_parameter(name)
        record.shapes[name], record.splits[name] = list(parameter.shape), []
        module.register_buffer(RECORD, record.encode().to(parameter.device))


def parents_of(module: nn.Module, name: str = "weight", dim: int = 0) -> Tensor:
    """Which entry before the first split each entry of a tensor axis descends from, over all splits.

    Args:
        module: The module that owns the tensor.
        name: Name of the parameter or buffer within ``module``.
        dim: The axis; 0 holds the neurons of an ``nn.Linear`` or a convolution.

    Returns:
        int64 tensor of shape ``(size of the axis,)``; ``0, 1, 2, ...`` where nothing was split.

    Example:
        >>> parents_of(nn.Linear(4, 3))
        tensor([0, 1, 2])
    """
    record = record_of(module)
    if record is None or name not in record.shapes:
        return torch.arange(getattr(module, name).shape[dim])
    return record.parents(name, dim)
