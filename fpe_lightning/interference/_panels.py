"""Draw a matrix into a panel: cells, ticks, parents, signs and empty cells; and pairs of panels with a title."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fpe_lightning.extras import extra
from fpe_lightning.interference.layer import LayerState

with extra("template", "A figure"):
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

HATCH = "////"
DIVERGING = "RdBu_r"
SEQUENTIAL = "cividis"
_MARKED_CELLS = 2000  # with more cells, each is too small for a dash or hatching
_SEPARATED_PARENTS = 40
SHOWN = 2048  # most rows and columns of a panel; readers cannot distinguish more, and a larger matrix fills the memory


def thinned(state: LayerState) -> tuple[LayerState, int]:
    """The layer on the CPU in single precision, with rows sorted by parent and inputs thinned by a stride.

    If there are too many rows, whole parents are omitted, so that each parent shows all its children.

    Args:
        state: The layer.

    Returns:
        The thinned layer, and the stride of its inputs.
    """
    # Sort rows by parent, keep every n-th parent with all its children, and every m-th input.
    numbers, parents = state.parents.cpu().unique(return_inverse=True)
    order = torch.argsort(parents, stable=True)
    order = order[parents[order] % stride(state.width, SHOWN) == 0]
    step = stride(state.weight.shape[1], SHOWN)
    weight, mask = state.weight.cpu()[order, ::step].float(), state.mask.cpu()[order, ::step]
    return LayerState(weight, mask, numbers[parents[order]]), step


def panel_size(rows: int, columns: int) -> tuple[float, float]:
    """Width and height of a panel in inches, large enough for its cells and never larger than a page."""
    return float(np.clip(0.3 * columns, 3.6, 8.0)), float(np.clip(0.3 * rows, 2.4, 8.0))


def stride(count: int, limit: int) -> int:
    """The smallest stride that shows at most ``limit`` of the entries."""
    return -(-count // limit)


def finite(values: NDArray) -> NDArray:
    """The values without NaN and infinity, so that a diverged run still has a figure."""
    return values[np.isfinite(values)]


def draw_cells(
    ax: Axes, cells: NDArray, empty: NDArray | None = None, *, marked: bool, signs: bool = False, **image: object
) -> AxesImage:
    """Draw a matrix, one cell per entry; empty cells stay white.

    Args:
        ax: The panel.
        cells: ``(rows, columns)``.
        empty: Bool of that shape, True for cells without a weight.
        marked: Whether cells are large enough to hatch empty ones and to dash negative ones; see :func:`has_space`.
        signs: Whether to dash negative cells, for prints without colour.
        image: Keyword arguments of ``Axes.imshow``.

    Returns:
        The image, for a colour bar.
    """
    # The background shows through masked cells: hatched where cells are large enough.
    ax.patch.set(facecolor="white", hatch=HATCH if marked else None, edgecolor="0.7", linewidth=0)
    shown = np.ma.masked_array(cells, np.zeros(cells.shape, bool) if empty is None else empty)
    # Matplotlib's default smooths a panel of few tall cells, which would blend neighbouring neurons.
    drawn = ax.imshow(shown, **{"aspect": "auto", "interpolation": "nearest", **image})  # type: ignore[arg-type]
    if signs and marked:
        rows, columns = np.nonzero(np.ma.filled(shown < 0, False))
        ax.scatter(columns, rows, marker="_", s=14, linewidths=0.8, color="black")
    return drawn


def scale_limit(values: NDArray) -> float:
    """The magnitude at the end of a colour scale: it covers all but the largest 0.1 % of the non-zero values."""
    magnitudes = finite(np.abs(values[values != 0]))
    return float(np.quantile(magnitudes, 0.999, method="higher")) if magnitudes.size else 1.0


def label_inputs(ax: Axes, count: int, step: int, axis: str = "x") -> None:
    """Number the input features along an axis, with about eight ticks."""
    name = "input feature" if step == 1 else f"input feature (one in {step} shown)"
    target = ax.xaxis if axis == "x" else ax.yaxis
    # Ticks at round feature numbers, placed at the shown columns.
    locator = MaxNLocator(nbins=8, integer=True, min_n_ticks=1)
    ticks = [tick for tick in locator.tick_values(0, (count - 1) * step) if 0 <= tick <= (count - 1) * step]
    target.set_ticks([tick / step for tick in ticks], labels=[f"{tick:.0f}" for tick in ticks])
    target.set_label_text(name)


def label_parents(ax: Axes, parents: NDArray, name: str) -> None:
    """Label the rows of each parent, with a line between parents if they are few.

    Args:
        ax: The panel.
        parents: ``(rows,)`` integer parents, sorted.
        name: Label of the axis.
    """
    numbers, starts, counts = np.unique(parents, return_index=True, return_counts=True)
    # A tick in the middle of each parent's rows, for at most 16 parents.
    shown = slice(None, None, stride(len(numbers), 16))
    ax.set_yticks((starts + (counts - 1) / 2)[shown], labels=[str(number) for number in numbers[shown]])
    ax.set_ylabel(name)
    if len(numbers) <= _SEPARATED_PARENTS:
        for start in starts[1:]:
            ax.axhline(start - 0.5, color="black", linewidth=0.8)


def explain(figure: Figure, *, marked: bool, empty: bool = False, signs: bool = False) -> None:
    """Add a legend below the panels for cells without a weight and negative cells.

    Args:
        figure: The figure.
        marked: Whether cells carry marks, as in :func:`draw_cells`.
        empty: Whether some cells have no weight.
        signs: Whether some cells are negative.
    """
    handles: list[Artist] = []
    if empty:
        handles.append(Patch(facecolor="white", edgecolor="0.7", hatch=HATCH if marked else None, label="no weight"))
    if signs and marked:
        handles.append(Line2D([], [], linestyle="", marker="_", color="black", label="negative"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def has_space(*matrices: NDArray) -> bool:
    """Whether the cells of all these matrices are large enough for a mark."""
    return all(matrix.size <= _MARKED_CELLS for matrix in matrices)


def two_panels(size: tuple[float, float], before: LayerState, after: LayerState, title: str) -> tuple[Figure, Any]:
    """A figure with the panels "before" and "after"; its title names the changes by the split."""
    width, height = size
    figure = Figure(figsize=(2 * width + 2.6, height + 1.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, name in zip(panels, ("before", "after"), strict=True):
        ax.set_title(name)
    figure.suptitle(f"{title}\n{change(before, after)}")
    return figure, panels


def change(before: LayerState, after: LayerState) -> str:
    """The changes by a split in words; with the inputs, if the layer below was split at the same time."""
    inputs = (before.weight.shape[1], after.weight.shape[1])
    return (
        f"alpha = {ratio(after.width, before.width)}, width {before.width} → {after.width}, "
        + (f"inputs {inputs[0]} → {inputs[1]}, " if inputs[0] != inputs[1] else "")
        + f"non-zeros {before.nonzeros:,} → {after.nonzeros:,}"
    )


def ratio(after: int, before: int) -> str:
    return f"{after / before:g}"
