"""Re-estimate the running statistics of normalisation layers after each expansion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from typing_extensions import override

from fpe_lightning.callbacks.lightnings import Callback
from fpe_lightning.expansion.report import ExpansionReport


class BatchNormReestimation(Callback):
    """Resets the running statistics of batch and instance norms at each split of an ``ExpansionCallback``.

    Without it, children keep the statistics of their parent until the moving average follows. With it, the statistics
    after a split are a plain average over batches. The moving average takes over when one batch weighs as little as
    the layer's momentum says: after ten batches at the default momentum of 0.1. The callback needs no extra pass over
    the data, because training computes these statistics in any case. Layers in eval mode keep their statistics. A run
    that resumes in the middle of the average continues it bit by bit.

    Example:
        >>> from fpe_lightning.callbacks import ExpansionCallback
        >>> callbacks = [ExpansionCallback(alpha=2, epoch=3), BatchNormReestimation()]
    """

    def __init__(self) -> None:
        super().__init__()
        self._momenta: dict[str, float] = {}

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Reset the statistics; a second split during the average restarts it."""
        # Layers that still average have no momentum now: the first split saved it.
        self._momenta = {**self._momenta, **restart_statistics(pl_module)}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        average_statistics(pl_module, self._momenta)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._momenta:
            self._momenta = resume_momenta(pl_module, self._momenta)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        resume_momenta(pl_module, self._momenta, at_once=True)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        resume_momenta(pl_module, self._momenta, at_once=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._momenta = state_dict["momenta"]


def restart_statistics(model: nn.Module) -> dict[str, float]:
    """Reset the running mean and variance of batch and instance norms, and average them plainly over batches.

    A split copies the statistics of a neuron to its children, but each child reads a part of its parent's inputs, and
    later layers see other values too. Layers in eval mode and layers without statistics are left alone: a frozen norm
    would never collect new ones. Without a training loop, ``torch.optim.swa_utils.update_bn`` does all of this at once.

    Args:
        model: The split model.

    Returns:
        The momentum of each layer that averages now, by qualified name, for :func:`resume_momenta`. Layers without a
        momentum average in any case and are not included.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> restart_statistics(model), model[1].momentum
        ({'1': 0.1}, None)
    """
    momenta = {}
    for name, norm in _norms(model):
        norm.reset_running_stats()
        if norm.momentum is not None:
            momenta[name] = norm.momentum
            norm.momentum = None  # torch then weighs all batches alike
    return momenta


def average_statistics(model: nn.Module, momenta: Mapping[str, float]) -> None:
    """Let layers average again, as after :func:`restart_statistics`, but keep their present statistics.

    Args:
        model: The model.
        momenta: The result of :func:`restart_statistics` or :func:`resume_momenta`.
    """
    for name in momenta:
        _norm(model, name).momentum = None


def resume_momenta(model: nn.Module, momenta: Mapping[str, float], at_once: bool = False) -> dict[str, float]:
    """Restore the momentum of each layer as soon as one batch weighs no more in its average than the momentum says.

    The average over ``n`` batches gives each batch the weight ``1 / n``. From ``n = 1 / momentum`` on the moving
    average takes over. So the first batches after a split never weigh more than they do in the long run.

    Args:
        model: The model.
        momenta: The result of :func:`restart_statistics` or of this function.
        at_once: Whether to restore all of them without waiting.

    Returns:
        The entries of ``momenta`` that still wait.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.5))
        >>> momenta = restart_statistics(model)
        >>> for _ in range(2):
        ...     _ = model(torch.randn(4, 2))
        ...     momenta = resume_momenta(model, momenta)
        ...     print(momenta, model[0].momentum)
        {'0': 0.5} None
        {} 0.5
    """
    left = {}
    for name, momentum in momenta.items():
        norm = _norm(model, name)
        assert norm.num_batches_tracked is not None
        if at_once or int(norm.num_batches_tracked) * momentum >= 1:
            norm.momentum = momentum
        else:
            left[name] = momentum
    return left


def _norm(model: nn.Module, name: str) -> _NormBase:
    norm = model.get_submodule(name)
    assert isinstance(norm, _NormBase)
    return norm


def _norms(model: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    """Names and norms that collect statistics at present."""
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
            yield name, module
