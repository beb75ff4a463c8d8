"""Say how the result of a run is loaded, and write it as an ordinary model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from fpe_lightning.callbacks.lightnings import MisconfigurationException, loaded
from fpe_lightning.checkpoints.names import is_expanded
from fpe_lightning.checkpoints.plain_layers import save_plain


class Result:
    """The result of a run: checkpoints of a split model, and at the end a plain file.

    Args:
        plain_file: Where to write the trained model, as :func:`~fpe_lightning.checkpoints.plain_layers.save_plain`
            does; None for nowhere.

    Example:
        >>> Result(None).plain_file is None
        True
    """

    def __init__(self, plain_file: str | Path | None) -> None:
        if plain_file is not None and not isinstance(plain_file, (str, Path)):
            raise MisconfigurationException(f"`plain_file` takes a path, found {plain_file!r}.")
        self.plain_file = None if plain_file is None else Path(plain_file)
        self._told = False

    def check(self, trainer: pl.Trainer) -> None:
        """Refuse, before the run, a file that cannot be written after it."""
        if self.plain_file is not None and isinstance(trainer.strategy, loaded("strategies", "ModelParallelStrategy")):
            raise MisconfigurationException(
                f"`plain_file` is written from whole weights, which {type(trainer.strategy).__name__} keeps in shards: "
                "leave it out, and after the run load a checkpoint on one process and call `fpe_lightning.save_plain`."
            )
        if self.plain_file is not None and self.plain_file.is_dir():
            raise MisconfigurationException(f"`plain_file={str(self.plain_file)!r}` is a directory; name a file in it.")

    def tell(self, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Say once how to load a checkpoint, when the first one of a split model is written."""
        if self._told or not is_expanded(checkpoint.get("state_dict", {})):
            return
        self._told = True
        name = type(pl_module).__name__
        rank_zero_info(
            f"Checkpoints of this run hold more neurons than {name} builds. A Trainer with an ExpansionCallback loads "
            f"them; everything else, such as `{name}.load_from_checkpoint`, loads them inside of "
            "`with fpe_lightning.expanded_checkpoints():`."
        )

    def write(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        """Write the plain file, on one process."""
        if self.plain_file is None or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        try:
            save_plain(pl_module, self.plain_file)
        except (ValueError, OSError) as error:
            raise MisconfigurationException(f"`plain_file` cannot be written: {error}") from error
        rank_zero_info(f"Wrote the trained model as ordinary layers to {self.plain_file}.")
