"""Splits on several processes: refuse untested strategies, compare all ranks, and rebuild DDP's wrapper."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from fpe_lightning.callbacks.fsdp2.exchange import whole_parameters
from fpe_lightning.callbacks.fsdp2.strategy import ExpandableModelParallelStrategy
from fpe_lightning.callbacks.lightnings import MisconfigurationException, loaded
from fpe_lightning.checkpoints.load_hook import restores_structure_on_load
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.layout import is_structure

SUPPORTED = (SingleDeviceStrategy, DDPStrategy, ExpandableModelParallelStrategy)
"""Strategies that splits work under; those of the same names in ``pytorch_lightning`` count too."""
NOT_SUPPORTED = ("DeepSpeedStrategy", "XLAStrategy")
"""Subclasses of supported strategies that do not train as these do."""


def check_strategy(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse a strategy that would lose a split, or let ranks drift apart, in silence.

    Args:
        trainer: The trainer, with its strategy.
        pl_module: The module.

    Raises:
        MisconfigurationException: For every strategy except a single device, DDP and
            ``ExpandableModelParallelStrategy``; for communication hooks with a memory; and for spawned processes if the
            module of the main process cannot load their weights.
    """
    strategy = trainer.strategy
    supported = (*SUPPORTED, *loaded("strategies", "SingleDeviceStrategy", "DDPStrategy"))
    if not isinstance(strategy, supported) or isinstance(strategy, loaded("strategies", *NOT_SUPPORTED)):
        opt_in = ", or `ExpandableModelParallelStrategy`" if isinstance(strategy, ModelParallelStrategy) else ""
        raise MisconfigurationException(
            f"ExpansionCallback splits neurons on a single device or under DDP; found {type(strategy).__name__}, "
            'which shards or re-owns parameters and would revert or corrupt a split. Use `strategy="ddp"`'
            f"{opt_in}; or leave the callback out, stop where the split is due, expand the checkpoint with "
            "`fpe_lightning.expand_checkpoint`, and resume from it."
        )
    memory = getattr(strategy, "_ddp_comm_state", None)
    if hasattr(memory, "error_dict"):
        raise MisconfigurationException(
            f"The state of the communication hook, {type(memory).__name__}, stores gradients in their shapes before a "
            "split. Use a hook without memory, such as `fp16_compress_hook`, or none."
        )
    launchers = loaded("strategies.launchers.multiprocessing", "_MultiProcessingLauncher")
    if isinstance(strategy.launcher, launchers) and not restores_structure_on_load(pl_module):
        raise MisconfigurationException(
            "`ddp_spawn` brings the weights back into the module of the main process, which was never split. Use "
            '`strategy="ddp"`, or call `restore_structure_on_load(self)` at the end of the module\'s `__init__`.'
        )


def check_ranks_agree(trainer: pl.Trainer, model: nn.Module) -> None:
    """Compare parameters, masks and optimizer states of all processes, bit by bit.

    Args:
        trainer: The trainer, with its optimizers.
        model: The module.

    Raises:
        RuntimeError: With the ranks that differ from rank 0.
    """
    if trainer.world_size == 1:
        return
    # Seven bytes of the digest fit into an int64, which every backend can gather.
    digest = int.from_bytes(_digest(model, trainer.optimizers)[:7], "big")
    local = torch.tensor(digest, dtype=torch.int64, device=trainer.strategy.root_device)
    gathered = trainer.strategy.all_gather(local)
    assert isinstance(gathered, torch.Tensor)
    digests = gathered.flatten().tolist()
    differing = [rank for rank, found in enumerate(digests) if found != digests[0]]
    if differing:
        raise RuntimeError(
            f"After a split, rank {', '.join(map(str, differing))} of {len(digests)} differs from rank 0 in weights, "
            "masks or optimizer state. Every rank needs the same model before a split: give all ranks the same seed, "
            "and do not change weights on one rank."
        )


def _digest(model: nn.Module, optimizers: Sequence[Optimizer]) -> bytes:
    """A hash of all tensors that must be equal on every rank."""
    digest = hashlib.sha256()
    structure = {name for name, _ in model.named_buffers() if is_structure(name)}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # Running statistics differ between ranks by design; DDP broadcasts them before the next forward pass.
        if isinstance(tensor, nn.Parameter) or name in structure:
            _add(digest, name, tensor)
        for optimizer in optimizers:
            for key, value in optimizer.state.get(tensor, {}).items():
                _add(digest, key, value)
    return digest.digest()


def _add(digest: Any, name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor) or hasattr(value, "full_tensor"):
        return  # shards differ between ranks by design
    digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


@contextmanager
def splitting(trainer: pl.Trainer, pl_module: pl.LightningModule, sites: Sequence[Site]) -> Iterator[None]:
    """Prepare a split on several processes, and finish it: whole parameters inside, equal ranks, a new DDP wrapper.

    Args:
        trainer: The trainer.
        pl_module: The module.
        sites: The sites that the body of the ``with`` statement splits.

    Raises:
        ValueError: Under FSDP2, if a parameter cannot be exchanged; nothing changes in that case.
        RuntimeError: With the ranks that differ from rank 0.
    """
    strategy = trainer.strategy
    if isinstance(strategy, ExpandableModelParallelStrategy):
        # Gather all parameters of the sites, split them whole, and shard the wide ones.
        names = [name for site in sites for name in site.parameters()]
        with whole_parameters(pl_module, names, trainer.optimizers):
            yield
            check_ranks_agree(trainer, pl_module)
        return
    yield
    check_ranks_agree(trainer, pl_module)
    if isinstance(strategy, loaded("strategies", "DDPStrategy")):
        # DDP's reducer holds the old parameters, so a new wrapper is needed.
        ddp: Any = strategy
        ddp.model = strategy.lightning_module
        ddp.configure_ddp()
