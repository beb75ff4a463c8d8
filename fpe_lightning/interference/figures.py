"""Figures of a layer before and after a split: pure functions that return matplotlib figures.

They do not use pyplot, so that a figure in a training run leaves no global state. Sequences differ in luminance. If
cells are large enough, a dash marks negative ones and hatching marks cells without a weight, so that readers need no
colours. In large matrices printed in grey, dark means large magnitude.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from fpe_lightning.interference._columns import input_columns
from fpe_lightning.interference._panels import (
    SHOWN,
    draw_cells,
    explain,
    finite,
    has_space,
    label_inputs,
    label_parents,
    panel_size,
    scale_limit,
    stride,
    thinned,
)
from fpe_lightning.interference.layer import LayerState

_DIVERGING = "RdBu_r"
_SEQUENTIAL = "cividis"


def mask_figure(state: LayerState, site: str) -> Figure:
    """Draw the structure of a layer: the inputs that each child may read, with rows grouped by parent.

    A convolution kernel counts as a connection if any of its taps may be non-zero.

    Args:
        state: The layer.
        site: Name of the layer, for the title.

    Returns:
        A figure with one panel and its colour bar, one colour for each child of a parent.

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import LayerState
        >>> from fpe_lightning.interference.figures import mask_figure
        >>> mask_figure(LayerState.of(nn.Linear(3, 2)), "hidden").axes[0].get_xlabel()
        'input feature'
    """
    # A panel shows at most 2,048 rows and columns; a connection needs one tap that may be non-zero.
    shown, step = thinned(state)
    connected = shown.mask.flatten(2).any(2) if shown.mask.dim() > 2 else shown.mask
    parents = shown.parents.numpy()
    # Rows are sorted by parent: the number of a child is its distance from the first row of its parent.
    _, starts, counts = np.unique(parents, return_index=True, return_counts=True)
    child = np.arange(len(parents)) - np.repeat(starts, counts)
    children = int(counts.max())
    # One colour per child number, so that children of one parent differ.
    colours = ListedColormap(colormaps[_SEQUENTIAL](np.linspace(0.0, 0.85, children)))

    # The figure: panel, ticks by parent, colour bar, title with the counts.
    width, height = panel_size(*connected.shape)
    figure = Figure(figsize=(width + 2.2, height + 1.4), layout="constrained")
    ax = figure.add_subplot()
    cells = np.broadcast_to(child[:, None], connected.shape)
    norm = BoundaryNorm(np.arange(children + 1) - 0.5, max(children, 1))
    marked = has_space(cells)
    image = draw_cells(ax, cells, ~connected.numpy(), marked=marked, cmap=colours, norm=norm)
    label_inputs(ax, connected.shape[1], step)
    label_parents(ax, parents, "parent (children adjacent)")
    ticks = np.arange(0, children, stride(children, 8))
    figure.colorbar(image, ax=ax, ticks=ticks, aspect=30, label="child of its parent")
    neurons = len(state.parents.unique())
    figure.suptitle(
        f"Structure of {site}\nalpha = {_ratio(state.width, neurons)}, width {neurons} → {state.width}, "
        f"{state.nonzeros:,} of {state.mask.numel():,} weights non-zero"
    )
    explain(figure, marked=marked, empty=not bool(connected.all()))
    return figure


def gram_figure(before: LayerState, after: LayerState, site: str) -> Figure:
    """Draw the Gram matrix of a layer's input columns before and after a split, on one colour scale.

    Entries off the diagonal are the interference between two features. The scale covers all but the largest 0.1 % of
    them. Entries on the diagonal, which are much larger, may exceed it.

    Args:
        before: The layer before the split.
        after: The layer after it.
        site: Name of the layer, for the title.

    Returns:
        A figure with two panels and a shared colour bar.

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import LayerState
        >>> from fpe_lightning.interference.figures import gram_figure
        >>> state = LayerState.of(nn.Linear(3, 2))
        >>> [ax.get_title() for ax in gram_figure(state, state, "hidden").axes[:2]]
        ['before', 'after']
    """
    steps = [stride(state.weight.shape[1], SHOWN) for state in (before, after)]
    grams = [_gram(state.weight[:, ::step]) for state, step in zip((before, after), steps, strict=True)]
    # Without interference, the diagonal decides the scale.
    off_diagonal = np.concatenate([(gram - np.diag(np.diag(gram))).ravel() for gram in grams])
    limit = scale_limit(off_diagonal if off_diagonal.any() else np.concatenate([gram.ravel() for gram in grams]))
    marked = has_space(*grams)

    # Square panels of equal size for both matrices.
    side = max(max(panel_size(*gram.shape)) for gram in grams)
    figure, panels = _two_panels((side, side), before, after, f"Gram matrix of the inputs of {site}")
    style: dict[str, Any] = {"cmap": _DIVERGING, "vmin": -limit, "vmax": limit, "aspect": "equal"}
    for ax, gram, step in zip(panels, grams, steps, strict=True):
        image = draw_cells(ax, gram, marked=marked, signs=True, **style)
        label_inputs(ax, len(gram), step)
        label_inputs(ax, len(gram), step, axis="y")
    figure.colorbar(image, ax=panels, extend="both", aspect=30, label="$w_i \\cdot w_j$ (ends: beyond the scale)")
    explain(figure, marked=marked, signs=any((gram < 0).any() for gram in grams))
    return figure


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
        >>> from fpe_lightning.interference.figures import weights_figure
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
        >>> from fpe_lightning.interference.figures import kernel_figure
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


def capacity_figure(before: LayerState, after: LayerState, site: str) -> Figure:
    """Draw histograms of the feature capacities of a layer's inputs before and after a split, with their means.

    Args:
        before: The layer before the split.
        after: The layer after it.
        site: Name of the layer, for the title.

    Returns:
        A figure with one panel.

    Example:
        >>> from torch import nn
        >>> from fpe_lightning.interference import LayerState
        >>> from fpe_lightning.interference.figures import capacity_figure
        >>> state = LayerState.of(nn.Linear(3, 2))
        >>> capacity_figure(state, state, "hidden").axes[0].get_ylabel()
        'number of input features'
    """
    capacities = [finite(state.capacities.cpu().numpy()) for state in (before, after)]
    # The same bins for both histograms, up to the largest capacity.
    bins = np.linspace(0.0, np.concatenate(capacities).max(initial=0.0) or 1.0, 31).tolist()
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    ax = figure.add_subplot()
    styles: list[dict[str, Any]] = [
        {"color": "#0072B2", "linestyle": "-", "hatch": "////"},
        {"color": "#D55E00", "linestyle": "--", "hatch": "...."},
    ]
    # A filled area with a hatch and an outline, so that the two differ without colour.
    for name, values, style in zip(("before", "after"), capacities, styles, strict=True):
        line = {"color": style["color"], "linestyle": style["linestyle"]}
        ax.hist(values, bins, histtype="stepfilled", alpha=0.25, facecolor=style["color"], hatch=style["hatch"])
        ax.hist(values, bins, histtype="step", linewidth=1.6, label=name, **line)
        mean = float(values.mean()) if values.size else float("nan")
        ax.axvline(mean, linewidth=2.4, label=f"mean {name}: {mean:.3g}", **line)
    ax.set_xlabel("feature capacity (1: a feature of its own, 0: unread or wholly shared)")
    ax.set_ylabel("number of input features")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(f"Feature capacity of the inputs of {site}\n{_change(before, after)}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


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
    style: dict[str, Any] = {"cmap": _DIVERGING, "vmin": -limit} if signed else {"cmap": _SEQUENTIAL, "vmin": 0.0}
    beyond = any((np.abs(matrix) > limit).any() for matrix in cells)
    marked = has_space(*cells)

    # Both panels have the size of the wider layer, and share the colour bar.
    figure, panels = _two_panels(panel_size(*cells[1].shape), before, after, title)
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


def _two_panels(size: tuple[float, float], before: LayerState, after: LayerState, title: str) -> tuple[Figure, Any]:
    """A figure with the panels "before" and "after"; its title names the changes by the split."""
    width, height = size
    figure = Figure(figsize=(2 * width + 2.6, height + 1.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, name in zip(panels, ("before", "after"), strict=True):
        ax.set_title(name)
    figure.suptitle(f"{title}\n{_change(before, after)}")
    return figure, panels


def _change(before: LayerState, after: LayerState) -> str:
    """The changes by a split in words; with the inputs, if the layer below was split at the same time."""
    inputs = (before.weight.shape[1], after.weight.shape[1])
    return (
        f"alpha = {_ratio(after.width, before.width)}, width {before.width} → {after.width}, "
        + (f"inputs {inputs[0]} → {inputs[1]}, " if inputs[0] != inputs[1] else "")
        + f"non-zeros {before.nonzeros:,} → {after.nonzeros:,}"
    )


def _ratio(after: int, before: int) -> str:
    return f"{after / before:g}"


def _gram(weight: Tensor) -> NDArray:
    columns = input_columns(weight).double().cpu()
    gram: NDArray = (columns.T @ columns).float().numpy()
    return gram


def _magnitude(state: LayerState) -> LayerState:
    return replace(state, weight=state.weight.abs())
