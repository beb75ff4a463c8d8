"""Selectivity of neurons: the spread of their activation over classes, and their strongest samples."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1
"""Sample number that fills up the list of a neuron that is active on too few samples."""


def class_entropy(activations: Tensor, labels: Tensor) -> Tensor:
    r"""Entropy in bits of each neuron's activation over the classes; lower is more selective.

    With :math:`a_c` the mean activation of a neuron over the samples of class :math:`c`, and
    :math:`p_c = a_c / \sum_k a_k`,

    .. math::
        H = -\sum_c p_c \log_2 p_c,

    which is 0 for a neuron that responds to one class only, and :math:`\log_2` of the number of classes for a neuron
    that responds equally to all. The formula takes means over classes, not sums, so that frequent classes do not count
    more. It does not depend on the scale of the activation.

    A silent neuron, which is active on no sample, has no such distribution: its entropy is NaN. Exclude it from means
    (``nanmean``) and report the number of silent neurons.

    Args:
        activations: ``(n, neurons)`` floating point, finite and not negative, as after a ReLU.
        labels: ``(n,)`` int64 class numbers; the classes are the numbers that occur.

    Returns:
        ``(neurons,)`` float64.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, there is no sample, or an activation is negative or not finite.

    Example:
        >>> import torch
        >>> from studies.selectivity import class_entropy
        >>> class_entropy(torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0., 1., nan], dtype=torch.float64)
    """
    means = class_means(activations, labels)
    share = means / means.sum(0)  # NaN for a silent neuron: 0 / 0
    return torch.special.entr(share).sum(0) / torch.log(torch.tensor(2.0, dtype=share.dtype))


def excess_entropy(activations: Tensor, labels: Tensor) -> Tensor:
    r"""Entropy in bits over the classes of each neuron's activation above its usual level, independent of any offset.

    For :func:`class_entropy`, a neuron that is always on responds to all classes, even if it varies with one of them.
    Here the weight of a class is the excess of its mean activation :math:`a_c` over the median of the classes:
    :math:`e_c = \max(a_c - \operatorname{median}_k a_k, 0)`, :math:`p_c = e_c / \sum_k e_k`, and

    .. math::
        H = -\sum_c p_c \log_2 p_c.

    It is 0 for a neuron that prefers one class and is equal for all others, and :math:`\log_2 m` for a neuron that
    prefers :math:`m` classes equally, if they are fewer than half. Neither an added constant nor a scale changes it. If
    a neuron is silent for most classes, the median is 0 and the result equals :func:`class_entropy`.

    Args:
        activations: ``(n, neurons)`` floating point and finite, of any sign: before or after a ReLU.
        labels: ``(n,)`` int64 class numbers.

    Returns:
        ``(neurons,)`` float64; NaN for a neuron whose mean exceeds the median for no class, such as a silent one.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, there is no sample, or an activation is not finite.

    Example:
        >>> import torch
        >>> from studies.selectivity import class_entropy, excess_entropy
        >>> always_on = torch.tensor([[10.0], [14.0], [10.0], [10.0]])
        >>> labels = torch.arange(4)
        >>> round(class_entropy(always_on, labels).item(), 2), excess_entropy(always_on, labels).item()
        (1.98, 0.0)
    """
    means = class_means(activations, labels, signed=True)
    # For an even number of classes, torch takes the lower of the two middle values, which is the mean of a class.
    excess = (means - means.median(0).values).clamp_min(0)
    # Rounding makes equal classes differ slightly; such differences are no excess.
    excess = torch.where(excess > 1e-9 * means.abs().amax(0), excess, 0)
    share = excess / excess.sum(0)
    return torch.special.entr(share).sum(0) / torch.log(torch.tensor(2.0, dtype=share.dtype))


def class_selectivity(activations: Tensor, labels: Tensor) -> Tensor:
    r"""Class selectivity of each neuron: the contrast between its best class and the mean of the others.

    :math:`(a_1 - \bar a) / (a_1 + \bar a)` with :math:`a_1` the largest mean activation over a class and
    :math:`\bar a` the mean over all other classes. It is 1 for a neuron that responds to one class only, and 0 for a
    neuron that responds equally to all.

    Args:
        activations: ``(n, neurons)`` floating point, finite and not negative.
        labels: ``(n,)`` int64 class numbers of at least two classes.

    Returns:
        ``(neurons,)`` float64 in [0, 1]; NaN for a silent neuron.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, an activation is negative or not finite, or all samples are of one class.

    Example:
        >>> import torch
        >>> from studies.selectivity import class_selectivity
        >>> class_selectivity(torch.tensor([[3.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1, 2]))
        tensor([1.0000, 0.3333], dtype=torch.float64)
    """
    means = class_means(activations, labels)
    if len(means) < 2:
        raise ValueError(
            "Selectivity compares classes, but all samples are of one class: give samples of at least two."
        )
    # The mean of all classes except the best one.
    best = means.amax(0)
    others = (means.sum(0) - best) / (len(means) - 1)
    return (best - others) / (best + others)


def class_means(activations: Tensor, labels: Tensor, signed: bool = False) -> Tensor:
    """Mean activation of each neuron over the samples of each class.

    Args:
        activations: ``(n, neurons)`` floating point and finite.
        labels: ``(n,)`` int64 class numbers.
        signed: Whether activations may be negative.

    Returns:
        ``(classes, neurons)`` float64, one row for each class that occurs, in the order of their numbers.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, there is no sample, or an activation is out of range.

    Example:
        >>> import torch
        >>> from studies.selectivity import class_means
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([7, 7, 9])).squeeze(1).tolist()
        [2.0, 5.0]
    """
    _check(activations, labels, signed)
    # Add the rows of each class in double precision, then divide by their number.
    _, number, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), activations.shape[1], dtype=torch.float64, device=activations.device)
    return sums.index_add_(0, number, activations.double()) / counts.unsqueeze(1)


def top_samples(activations: Tensor, count: int) -> Tensor:
    """The samples of the strongest activation of each neuron, the strongest first; equals in the order of samples.

    Args:
        activations: ``(n, neurons)`` floating point, finite and not negative.
        count: Number of samples for each neuron, at least 1.

    Returns:
        ``(neurons, count)`` int64 sample numbers, filled up with -1 if the neuron is active on fewer samples.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, an activation is negative or not finite, or ``count`` is out of range.

    Example:
        >>> import torch
        >>> from studies.selectivity import top_samples
        >>> top_samples(torch.tensor([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0]]), 2)
        tensor([[ 1,  2],
                [ 2, -1]])
    """
    _check(activations, None)
    if not 1 <= count <= len(activations):
        raise ValueError(f"`count` has to be between 1 and the number of samples, {len(activations)}, found {count}.")
    # A stable sort keeps equal activations in the order of their samples.
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
            f"`activations` have to be finite and not negative, found {least:.3g}: pass the output of a ReLU."
        )
    if labels is None:
        return
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` have to be int64 class numbers, found {labels.dtype}.")
    if labels.shape != activations.shape[:1]:
        raise ValueError(
            f"`labels` have to be one for each of the {len(activations)} samples, found shape {tuple(labels.shape)}."
        )
