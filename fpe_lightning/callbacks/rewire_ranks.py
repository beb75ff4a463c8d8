"""Rewiring on several processes: strategies that it works under, and equal masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import lightning.pytorch as pl
import torch

from fpe_lightning.callbacks.lightnings import MisconfigurationException, loaded
from fpe_lightning.rewiring import Weight


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuse strategies under which a process does not hold whole weights, or which were never tried.

    Raises:
        MisconfigurationException: For every strategy but a single device and DDP.
    """
    single, other = ("SingleDeviceStrategy", "DDPStrategy"), ("DeepSpeedStrategy", "XLAStrategy")
    if not isinstance(trainer.strategy, loaded("strategies", *single)) or isinstance(
        trainer.strategy, loaded("strategies", *other)
    ):
        raise MisconfigurationException(
            f"Rewire needs whole weights and gradients on every process; found {type(trainer.strategy).__name__}. Use "
            'one device or `strategy="ddp"`, or leave the callback out.'
        )


def check_masks_agree(trainer: pl.Trainer, weights: Sequence[Weight]) -> None:
    """Compare the masks of all processes after an update.

    Raises:
        RuntimeError: With the ranks that differ.
    """
    if trainer.world_size == 1:
        return
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.held.cpu().numpy().tobytes())
    number = int.from_bytes(digest.digest()[:7], "big")
    local = torch.tensor(number, dtype=torch.int64, device=trainer.strategy.root_device)
    found = trainer.strategy.all_gather(local)
    assert isinstance(found, torch.Tensor)
    differing = [rank for rank, each in enumerate(found.flatten().tolist()) if each != number]
    if differing:
        raise RuntimeError(
            f"After an update of Rewire, rank {', '.join(map(str, differing))} has other masks than rank "
            f"{trainer.global_rank}. Every rank needs the same weights: give all ranks the same seed, and do not "
            "change weights on one rank."
        )
