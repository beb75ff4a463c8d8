"""Draw how the mask of a layer moved over the course of training: a pure function that returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fpe_lightning.extras import extra

with extra("template", "A figure"):
    from matplotlib.figure import Figure


def mask_history_figure(masks: Tensor, steps: Sequence[int], site: str) -> Figure:
    """Draw when each weight of a mask grew, and how much of the first mask is left.

    Args:
        masks: Bool ``(updates + 1, neurons, inputs)``: the first mask, and that after each update.
        steps: The optimizer step of each mask.
        site: Name of the layer, for the title.

    Returns:
        A figure with the last mask, coloured by the step in which each weight grew (free entries stay white), above the
        share of the first mask that each mask still holds.

    Example:
        >>> masks = torch.tensor([[[True, False]], [[False, True]]])
        >>> figure = mask_history_figure(masks, [0, 10], "net.0")
        >>> [axis.get_ylabel() for axis in figure.axes[:2]]
        ['neuron', 'share of the first mask']
    """
    held, first = masks.bool(), masks[0].bool()
    grown = held[1:] & ~held[:-1]
    age = torch.zeros(first.shape)
    for step, new in zip(steps[1:], grown, strict=True):
        age[new] = step
    age[~held[-1]] = torch.nan
    overlap = [float((first & mask).sum() / first.sum().clamp(min=1)) for mask in held]

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 1])
    image = above.imshow(np.ma.masked_invalid(age.numpy()), aspect="auto", cmap="viridis", interpolation="nearest")
    image.set_clim(min(steps), max(max(steps), min(steps) + 1))
    above.set(xlabel="input", ylabel="neuron", title=f"The mask of {site} at step {steps[-1]}")
    figure.colorbar(image, ax=above, label="step in which the weight grew")
    below.plot(steps, overlap, color="#0072B2", marker="o", markersize=3)
    below.set(xlabel="optimizer step", ylabel="share of the first mask", ylim=(0, 1.02))
    below.grid(color="0.92")
    return figure
