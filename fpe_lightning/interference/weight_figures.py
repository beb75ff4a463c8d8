"""Figures of the weights of a layer before and after a split: pure functions that return matplotlib figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fpe_lightning.extras import extra
from fpe_lightning.interference._panels import (
    DIVERGING,
    SEQUENTIAL,
    draw_cells,
    explain,
    has_space,
    label_inputs,
    label_parents,
    panel_size,
    scale_limit,
    thinned,
    two_panels,
)
from fpe_lightning.interference.layer import LayerState

with extra("template", "A figure"):
    from matplotlib.figure import Figure


def weights_figure(before: LayerState, after: LayerState, site: str) -> Figure:
    """Draw the weights of a layer before and after a split, rows grouped by parent, on one colour scale centred at 0.

    Each convolution kernel is one cell, the sum of its taps.

    Args:
        before: The layer before the split.
        after: The layer after it.
        site: Name of the layer, for the title.

    Returns:
        A figure with two panels and a shared colour bar.

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import LayerState
        >>> from fpe_lightning.interference.weight_figures import weights_figure
        >>> state = LayerState.of(nn.Linear(3, 2))
        >>> weights_figure(state, state, "hidden").axes[1].get_ylabel()
        'parent (children adjacent)'
    """
    kernel = before.weight.dim() > 2
    label = "weight, summed over the kernel" if kernel else "weight"
    return _before_and_after(before, after, f"Weights of {site}", label, signed=True)


def kernel_figure(before: LayerState, after: LayerState, site: str) -> Figure:
    """Draw the magnitude of each kernel of a convolution before and after a split: the sum of absolute weights.

    Args:
        before: The convolution before the split.
        after: The convolution after it.
        site: Name of the layer, for the title.

    Returns:
        A figure with two panels and a shared colour bar that starts at 0.

    Raises:
        ValueError: If the layer has no kernel.

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import LayerState
        >>> from fpe_lightning.interference.weight_figures import kernel_figure
        >>> state = LayerState.of(nn.Conv2d(3, 2, 3))
        >>> kernel_figure(state, state, "conv").axes[2].get_ylabel()
        'absolute weight, summed over the kernel'
    """
    if before.weight.dim() < 3:
        raise ValueError(
            f"A weight of shape (neurons, inputs, *kernel) is needed, but {site} has shape "
            f"{tuple(before.weight.shape)}: use `weights_figure` for a linear layer."
        )
    label = "absolute weight, summed over the kernel"
    return _before_and_after(_magnitude(before), _magnitude(after), f"Kernels of {site}", label, signed=False)


def _before_and_after(before: LayerState, after: LayerState, title: str, label: str, signed: bool) -> Figure:
    """Draw two panels of weights, rows grouped by parent, on one colour scale."""
    # One matrix per state: weights summed over kernels, cells without a weight, parents of the rows.
    cells, empty, parents, steps = [], [], [], []
    for state in (before, after):
        shown, step = thinned(state)
        kernel = shown.weight.dim() > 2
        cells.append((shown.weight.flatten(2).sum(2) if kernel else shown.weight).numpy())
        empty.append(~(shown.mask.flatten(2).any(2) if kernel else shown.mask).numpy())
        parents.append(shown.parents.numpy())
        steps.append(step)
    limit = scale_limit(np.concatenate([matrix.ravel() for matrix in cells]))
    style: dict[str, Any] = {"cmap": DIVERGING, "vmin": -limit} if signed else {"cmap": SEQUENTIAL, "vmin": 0.0}
    beyond = any((np.abs(matrix) > limit).any() for matrix in cells)
    marked = has_space(*cells)

    # Both panels have the size of the wider layer, and share the colour bar.
    figure, panels = two_panels(panel_size(*cells[1].shape), before, after, title)
    for ax, matrix, hidden, rows, step in zip(panels, cells, empty, parents, steps, strict=True):
        image = draw_cells(ax, matrix, hidden, marked=marked, signs=signed, vmax=limit, **style)
        label_inputs(ax, matrix.shape[1], step)
        label_parents(ax, rows, "parent (children adjacent)" if ax is panels[1] else "neuron")
    figure.colorbar(image, ax=panels, aspect=30, extend=_ends(beyond, signed), label=label)
    negative = any((matrix < 0).any() for matrix in cells)
    explain(figure, marked=marked, empty=any(hidden.any() for hidden in empty), signs=negative)
    return figure


def _ends(beyond: bool, signed: bool) -> str:
    """The ends of a colour bar that are pointed, because values exceed them."""
    return "neither" if not beyond else "both" if signed else "max"


def _magnitude(state: LayerState) -> LayerState:
    return replace(state, weight=state.weight.abs())
