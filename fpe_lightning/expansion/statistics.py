"""Running statistics of normalisation layers after a split: what was measured on parents is not what children give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def restart_statistics(model: nn.Module) -> dict[str, float]:
    """Begin the running mean and variance of batch and instance norms anew, as plain averages over batches.

    A split copies the statistics of a neuron to its children, whose inputs are a part of their parent's; the layers
    behind it see other values too. Layers in eval mode, and those that keep no statistics, are left alone: a frozen
    norm would never find new ones. Without a training loop, ``torch.optim.swa_utils.update_bn`` does all at once.

    Args:
        model: The split model.

    Returns:
        The momentum of each layer that averages now, by qualified name, for :func:`resume_momenta`; layers without a
        momentum average in any case and are not among them.

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
            norm.momentum = None
    return momenta


def average_statistics(model: nn.Module, momenta: Mapping[str, float]) -> None:
    """Let layers average again, as after :func:`restart_statistics`, but go on with what they have.

    Args:
        model: The model.
        momenta: What :func:`restart_statistics` or :func:`resume_momenta` returned.
    """
    for name in momenta:
        norm = model.get_submodule(name)
        assert isinstance(norm, _NormBase)
        norm.momentum = None


def resume_momenta(model: nn.Module, momenta: Mapping[str, float], at_once: bool = False) -> dict[str, float]:
    """Give layers their momentum back as soon as a batch weighs no more in their average than the momentum says.

    The average over ``n`` batches gives each one the weight ``1 / n``. From ``n = 1 / momentum`` on the moving average
    takes over, so that the first batches after a split never weigh more than they would in the long run.

    Args:
        model: The model.
        momenta: What :func:`restart_statistics` or this function returned.
        at_once: Do not wait.

    Returns:
        What is left of ``momenta``.

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
        norm = model.get_submodule(name)
        assert isinstance(norm, _NormBase)
        assert norm.num_batches_tracked is not None
        if at_once or int(norm.num_batches_tracked) * momentum >= 1:
            norm.momentum = momentum
        else:
            left[name] = momentum
    return left


def _norms(model: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None:
            yield name, module
