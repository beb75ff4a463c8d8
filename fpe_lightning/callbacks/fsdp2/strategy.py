"""Splits under Lightning's ModelParallelStrategy with FSDP2: asked for by name, and only where it was tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.callbacks.averages import averages_of
from fpe_lightning.callbacks.fsdp2.checks import check_sharding, check_version
from fpe_lightning.callbacks.fsdp2.exchange import whole_parameters
from fpe_lightning.checkpoints.read import read_checkpoint, weights_in
from fpe_lightning.checkpoints.restore import restore_structure
from fpe_lightning.expansion.teachers import find_teachers
from fpe_lightning.sparse.layout import is_structure
from fpe_lightning.sparse.record import RECORD, Record, record_of


class ExpandableModelParallelStrategy(ModelParallelStrategy):
    """``ModelParallelStrategy`` whose parameters an ``ExpansionCallback`` may split while FSDP2 shards them.

    For each split, every process holds the parameters of the sites whole for a moment, with gradients and optimizer
    state; everything else stays in shards. Checkpoints of any stage resume at any stage, in one file and as a directory
    of shards. It was tested on two CPU processes, with the optimizers SGD and AdamW, and never on a GPU.

    Args:
        data_parallel_size: As in ``ModelParallelStrategy``.
        tensor_parallel_size: Has to be 1.
        save_distributed_checkpoint: As in ``ModelParallelStrategy``.
        **options: Further options of ``ModelParallelStrategy``.

    Raises:
        MisconfigurationException: If ``tensor_parallel_size`` is not 1, or the version of torch was not tested.

    Example:
        >>> ExpandableModelParallelStrategy(tensor_parallel_size=2)
        Traceback (most recent call last):
        ...
        lightning.fabric.utilities.exceptions.MisconfigurationException: ... Use `tensor_parallel_size=1`.
    """

    def __init__(
        self,
        data_parallel_size: int = 1,
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = True,
        **options: Any,
    ) -> None:
        if tensor_parallel_size != 1:
            raise MisconfigurationException(
                "ExpandableModelParallelStrategy splits parameters that FSDP2 alone shards; found "
                f"`tensor_parallel_size={tensor_parallel_size}`. Use `tensor_parallel_size=1`."
            )
        try:
            check_version()
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        super().__init__(data_parallel_size, tensor_parallel_size, save_distributed_checkpoint, **options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Give the module the checkpoint's widths before its weights are read into it."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        state = _shards(path) if path.is_dir() else weights_in(read_checkpoint(path, weights_only is not False), path)
        # Only what changes is whole for a moment; the rest stays in shards.
        with whole_parameters(self.model, changing(self.model, state), self.optimizers):
            changed = restore_structure(self.model, state)
        if changed:
            # All of it comes from the checkpoint; leftovers would keep torch from allocating the rest.
            for optimizer in self.optimizers:
                optimizer.state.clear()
        # Versions of Lightning before 2.6 do not know the option.
        options = {} if weights_only is None else {"weights_only": weights_only}
        return super().load_checkpoint(path, **options)


def check_fsdp2(trainer: pl.Trainer, pl_module: pl.LightningModule, layouts: Iterable[str]) -> None:
    """Refuse untested options under FSDP2, once the module is sharded; other strategies pass.

    Raises:
        MisconfigurationException: Naming what was found and what to do.
    """
    if not isinstance(trainer.strategy, ExpandableModelParallelStrategy):
        return
    try:
        check_sharding(pl_module)
    except ValueError as error:
        raise MisconfigurationException(str(error)) from error
    for layout in layouts:
        if layout not in ("masked", "by_shape"):
            raise MisconfigurationException(f'`layout="{layout}"` was not tested under FSDP2; use `layout="masked"`.')
    for teacher in find_teachers(pl_module, trainer.optimizers):
        raise MisconfigurationException(
            f"A part of the module copies another (`{teacher.name}` follows `{teacher.student}`), and copies cannot be "
            "split under FSDP2; use DDP."
        )
    if averages_of(trainer, pl_module):
        raise MisconfigurationException(
            "A callback holds an average of the weights, which cannot be split under FSDP2; leave it out, or use DDP."
        )


def changing(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    """The names of the parameters whose structure a ``state_dict`` changes, or may change."""
    for name, module in model.named_modules():
        path = f"{name}." if name else ""
        bits = state.get(path + RECORD)
        live, incoming = record_of(module) or Record(), Record() if bits is None else Record.decode(bits, path + RECORD)
        if live != incoming:
            yield from (path + key for key in live.shapes | incoming.shapes)


def _shards(path: Path) -> dict[str, Tensor]:
    """The shapes of the weights in a directory of shards, and the masks and records themselves."""
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    prefix = "state_dict."
    state: dict[str, Tensor] = {}
    small: dict[str, Tensor] = {}
    for key, metadata in FileSystemReader(path).read_metadata().state_dict_metadata.items():
        if key.startswith(prefix) and isinstance(metadata, TensorStorageMetadata):
            name = key.removeprefix(prefix)
            # Structure is small and has to be known; weights stay on the meta device until torch loads their shards.
            read = is_structure(name)
            tensor = torch.empty(metadata.size, dtype=metadata.properties.dtype, device="cpu" if read else "meta")
            (small if read else state)[name] = tensor
    state_dict_loader.load({"state_dict": small}, checkpoint_id=path)
    return state | small
