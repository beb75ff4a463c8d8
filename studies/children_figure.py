"""Draw the pictures that activate a neuron and its children most."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from studies.selectivity import NOTHING, class_entropy, top_samples

_INCH_A_PICTURE = 0.36


class Pictures(Protocol):
    """Anything that gives a picture for a sample number: a list, an array ``(n, height, width)``, a mapping."""

    def __getitem__(self, sample: int, /) -> Any:
        """An array ``(height, width)`` or ``(height, width, 3)``, or a PIL image."""


def children_figure(
    pictures: Pictures, labels: Tensor, before: Tensor, after: Tensor, parents: Tensor, *, count: int = 6, title: str
) -> Figure:
    """Draw the top pictures of every split neuron and of each of its children in one row.

    The title of each strip has the entropy of the neuron's activation over the classes
    (:func:`~studies.selectivity.class_entropy`).

    Args:
        pictures: Pictures of one size; only the drawn ones are read.
        labels: ``(n,)`` int64 class numbers.
        before: ``(n, neurons)`` activations of the neurons before the split, finite and not negative.
        after: ``(n, children)`` activations of the children.
        parents: ``(children,)`` int64, the parent of each child.
        count: Number of pictures of each neuron, the strongest first.
        title: Title of the figure.

    Returns:
        A figure with a row for each neuron of ``before``: first the neuron, then its children in order.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If shapes do not fit, or a parent is out of range.

    Example:
        >>> import torch
        >>> from studies.children_figure import children_figure
        >>> before, after = torch.rand(9, 1), torch.rand(9, 2)
        >>> parents, labels = torch.tensor([0, 0]), torch.arange(9) % 3
        >>> figure = children_figure(torch.rand(9, 4, 4), labels, before, after, parents, count=3, title="one neuron")
        >>> [ax.get_title().split(":")[0] for ax in figure.axes]
        ['neuron 0 before', 'child 1', 'child 2']
    """
    if parents.dtype != torch.int64 or parents.shape != after.shape[1:]:
        raise ValueError(
            f"`parents` have to be int64, one for each of the {after.shape[-1]} children, found {parents.dtype} of "
            f"shape {tuple(parents.shape)}."
        )
    if len(before) != len(after):
        raise ValueError(
            f"Parents and children need activations on the same samples, found {len(before)} and {len(after)}."
        )
    if parents.numel() and not 0 <= int(parents.min()) <= int(parents.max()) < before.shape[1]:
        raise ValueError(
            f"`parents` have to be neurons 0 to {before.shape[1] - 1}, found {int(parents.min())} to "
            f"{int(parents.max())}."
        )
    # Children by neuron, and the entropies and strongest samples of all neurons.
    own = [(parents == neuron).nonzero().flatten().tolist() for neuron in range(before.shape[1])]
    across = 1 + max(map(len, own))
    entropies = [class_entropy(activations, labels).tolist() for activations in (before, after)]
    tops = [top_samples(activations, count).tolist() for activations in (before, after)]

    # A row per neuron: its own strip, one strip per child, and empty panels up to the largest family.
    size = (across * (count * _INCH_A_PICTURE + 0.15) + 0.2, len(own) * (_INCH_A_PICTURE + 0.3) + 0.7)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.02))
    axes = figure.subplots(len(own), across, squeeze=False)
    for neuron, (row, children) in enumerate(zip(axes, own, strict=True)):
        _strip(row[0], pictures, tops[0][neuron], f"neuron {neuron} before", entropies[0][neuron])
        for number, (ax, child) in enumerate(zip(row[1:], children, strict=False), start=1):
            _strip(ax, pictures, tops[1][child], f"child {number}", entropies[1][child])
        for ax in row[1 + len(children) :]:
            ax.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def _strip(ax: Axes, pictures: Pictures, samples: list[int], name: str, entropy: float) -> None:
    """Draw the pictures of one neuron from left to right, with its name and entropy as a title."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    shown = [_grey(pictures[sample]) for sample in samples if sample != NOTHING]
    if not shown:
        ax.set_title(f"{name}: silent", fontsize=8)
        return
    ax.set_title(f"{name}: {entropy:.1f} bits", fontsize=8)
    height, width = shown[0].shape
    # White gaps between pictures, and white pictures for missing samples.
    gap = np.ones((height, max(1, width // 16)))
    blank = np.ones((height, width))
    tiles = [*shown, *[blank] * (len(samples) - len(shown))]
    strip = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
    ax.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _grey(picture: Any) -> np.ndarray:
    """A picture as ``(height, width)`` in [0, 1]; integers have the range 0 .. 255."""
    values = np.asarray(picture)
    scaled = values / 255 if values.dtype.kind in "iu" else values.astype(float)
    return scaled.mean(2) if scaled.ndim == 3 else scaled
