"""Figures of a layer before and after a split: pure functions that return matplotlib figures.

They do not use pyplot, so that a figure in a training run leaves no global state. Sequences differ in luminance. If
cells are large enough, a dash marks negative ones and hatching marks cells without a weight, so that readers need no
colours. In large matrices printed in grey, dark means large magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fpe_lightning.extras import extra
from fpe_lightning.interference._columns import input_columns
from fpe_lightning.interference._panels import (
    DIVERGING,
    SEQUENTIAL,
    SHOWN,
    change,
    draw_cells,
    explain,
    finite,
    has_space,
    label_inputs,
    label_parents,
    panel_size,
    ratio,
    scale_limit,
    stride,
    thinned,
    two_panels,
)
from fpe_lightning.interference.layer import LayerState

with extra("template", "A figure"):
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


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
    colours = ListedColormap(colormaps[SEQUENTIAL](np.linspace(0.0, 0.85, children)))

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
        f"Structure of {site}\nalpha = {ratio(state.width, neurons)}, width {neurons} → {state.width}, "
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
    figure, panels = two_panels((side, side), before, after, f"Gram matrix of the inputs of {site}")
    style: dict[str, Any] = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit, "aspect": "equal"}
    for ax, gram, step in zip(panels, grams, steps, strict=True):
        image = draw_cells(ax, gram, marked=marked, signs=True, **style)
        label_inputs(ax, len(gram), step)
        label_inputs(ax, len(gram), step, axis="y")
    figure.colorbar(image, ax=panels, extend="both", aspect=30, label="$w_i \\cdot w_j$ (ends: beyond the scale)")
    explain(figure, marked=marked, signs=any((gram < 0).any() for gram in grams))
    return figure


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
    ax.set_title(f"Feature capacity of the inputs of {site}\n{change(before, after)}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _gram(weight: Tensor) -> NDArray:
    columns = input_columns(weight).double().cpu()
    gram: NDArray = (columns.T @ columns).float().numpy()
    return gram
