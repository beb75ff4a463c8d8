"""How single-minded a neuron is: over which classes its activation is spread, and what it likes best."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1
"""Stands for a sample where a neuron is active on fewer than were asked for."""


def class_entropy(activations: Tensor, labels: Tensor) -> Tensor:
    r"""Entropy in bits of each neuron's activation over the classes; lower is more single-minded.

    With :math:`a_c` the mean activation of a neuron over the samples of class :math:`c`, and
    :math:`p_c = a_c / \sum_k a_k`,

    .. math::
        H = -\sum_c p_c \log_2 p_c,

    which is 0 for a neuron that answers to one class alone and :math:`\log_2` of the number of classes for one that
    answers to all alike. Means over classes, not sums, so that frequent classes do not count more. It does not depend
    on the scale of the activation.

    A silent neuron, active on no sample, has no such distribution: its entropy is NaN. Leave it out of means
    (``nanmean``) and say how many there are.

    Args:
        activations: ``(n, neurons)`` floating point, finite and not negative, as after a ReLU.
        labels: ``(n,)`` int64 class numbers; those that occur are the classes.

    Returns:
        ``(neurons,)`` float64.

    Raises:
        TypeError: If a dtype is another one.
        ValueError: If a shape does not fit, there is no sample, or an activation is negative or not finite.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import class_entropy
        >>> class_entropy(torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0., 1., nan], dtype=torch.float64)
    """
    means = class_means(activations, labels)
    share = means / means.sum(0)  # 0 / 0 of a silent neuron is NaN, and stays so
    return torch.special.entr(share).sum(0) / torch.log(torch.tensor(2.0, dtype=share.dtype))


def excess_entropy(activations: Tensor, labels: Tensor) -> Tensor:
    r"""Entropy in bits over the classes of what each neuron gives above its everyday level; free of any offset.

    :func:`class_entropy` takes a neuron that is always on for one that answers to all classes, whatever it varies with.
    Here a class counts by how far its mean activation :math:`a_c` lies above the median over the classes:
    :math:`e_c = \max(a_c - \operatorname{median}_k a_k, 0)`, :math:`p_c = e_c / \sum_k e_k`, and

    .. math::
        H = -\sum_c p_c \log_2 p_c.

    It is 0 for a neuron that stands out for one class and is level for all others, and :math:`\log_2 m` for one that
    stands out equally for :math:`m` classes, fewer than half of them. No constant added to a neuron's activation
    changes it, and no scale. Where a neuron is silent for most classes, the median is 0 and this is
    :func:`class_entropy`.

    Args:
        activations: ``(n, neurons)`` floating point and finite; of any sign, so that it can be had before a ReLU too.
        labels: As for :func:`class_entropy`.

    Returns:
        ``(neurons,)`` float64; NaN for a neuron whose mean is above the median for no class, a silent one among them.

    Raises:
        TypeError: As :func:`class_entropy`.
        ValueError: If a shape does not fit, there is no sample, or an activation is not finite.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import class_entropy, excess_entropy
        >>> always_on = torch.tensor([[10.0], [14.0], [10.0], [10.0]])
        >>> labels = torch.arange(4)
        >>> round(class_entropy(always_on, labels).item(), 2), excess_entropy(always_on, labels).item()
        (1.98, 0.0)
    """
    means = class_means(activations, labels, signed=True)
    # The lower of the two in the middle, where classes are even in number: it is the mean of a class.
    excess = (means - means.median(0).values).clamp_min(0)
    # Sums of many samples leave classes that are level apart by rounding alone.
    excess = torch.where(excess > 1e-9 * means.abs().amax(0), excess, 0)
    share = excess / excess.sum(0)
    return torch.special.entr(share).sum(0) / torch.log(torch.tensor(2.0, dtype=share.dtype))


def class_selectivity(activations: Tensor, labels: Tensor) -> Tensor:
    r"""Class selectivity of each neuron: how far its best class stands out from the mean of the others.

    :math:`(a_1 - \bar a) / (a_1 + \bar a)` with :math:`a_1` the largest mean activation over a class and
    :math:`\bar a` the mean over all other classes: 1 for a neuron that answers to one class alone, 0 for one that
    answers to all alike.

    Args:
        activations: As for :func:`class_entropy`.
        labels: As for :func:`class_entropy`; of at least two classes.

    Returns:
        ``(neurons,)`` float64 in [0, 1]; NaN for a silent neuron.

    Raises:
        TypeError: As :func:`class_entropy`.
        ValueError: As :func:`class_entropy`; and if all samples are of one class.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference import class_selectivity
        >>> class_selectivity(torch.tensor([[3.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1, 2]))
        tensor([1.0000, 0.3333], dtype=torch.float64)
    """
    means = class_means(activations, labels)
    if len(means) < 2:
        raise ValueError(
            "Selectivity compares classes, but all samples are of one class: give samples of at least two."
        )
    best = means.amax(0)
    others = (means.sum(0) - best) / (len(means) - 1)
    return (best - others) / (best + others)


def class_means(activations: Tensor, labels: Tensor, signed: bool = False) -> Tensor:
    """Mean activation of each neuron over the samples of each class.

    Args:
        activations: As for :func:`class_entropy`.
        labels: As for :func:`class_entropy`.
        signed: Whether activations may be negative.

    Returns:
        ``(classes, neurons)`` float64, a row for each class that occurs, in the order of their numbers.

    Raises:
        TypeError: As :func:`class_entropy`.
        ValueError: As :func:`class_entropy`.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference.selectivity import class_means
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([7, 7, 9])).squeeze(1).tolist()
        [2.0, 5.0]
    """
    _check(activations, labels, signed)
    _, number, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), activations.shape[1], dtype=torch.float64, device=activations.device)
    return sums.index_add_(0, number, activations.double()) / counts.unsqueeze(1)


def top_samples(activations: Tensor, count: int) -> Tensor:
    """The samples on which each neuron is most active, the strongest first; of equals the first sample.

    Args:
        activations: As for :func:`class_entropy`.
        count: Samples for each neuron, at least 1.

    Returns:
        ``(neurons, count)`` int64 sample numbers; -1 where the neuron is active on fewer samples.

    Raises:
        TypeError: As :func:`class_entropy`.
        ValueError: As :func:`class_entropy`; and if ``count`` is out of range.

    Example:
        >>> import torch
        >>> from fpe_lightning.interference.selectivity import top_samples
        >>> top_samples(torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0]]), 2)
        tensor([[ 1,  2],
                [ 2, -1]])
    """
    _check(activations, None)
    if not 1 <= count <= len(activations):
        raise ValueError(f"`count` has to be between 1 and the number of samples, {len(activations)}, found {count}.")
    values, samples = activations.sort(dim=0, descending=True, stable=True)
    return torch.where(values > 0, samples, NOTHING)[:count].T.contiguous()


def _check(activations: Tensor, labels: Tensor | None, signed: bool = False) -> None:
    if not activations.is_floating_point():
        raise TypeError(f"`activations` have to be floating point, found {activations.dtype}.")
    if activations.dim() != 2 or activations.numel() == 0:
        raise ValueError(f"`activations` have to have the shape (n, neurons), found {tuple(activations.shape)}.")
    finite = bool(activations.isfinite().all())
    if signed and not finite:
        raise ValueError(f"`activations` have to be finite, found {activations[~activations.isfinite()][0].item()}.")
    if not signed and (not finite or bool((activations < 0).any())):
        least = activations.min().item()
        raise ValueError(
            f"`activations` have to be finite and not negative, found {least:.3g} among them: pass what a ReLU gives."
        )
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` have to be int64 class numbers, found {labels.dtype}.")
    if labels.shape != activations.shape[:1]:
        raise ValueError(
            f"`labels` have to be one for each of the {len(activations)} samples, found shape {tuple(labels.shape)}."
        )
