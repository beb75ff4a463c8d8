"""How a matrix is drawn: cells, ticks, parents, signs and empty cells. No figure is made here."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fpe_lightning.interference.layer import LayerState

HATCH = "////"
_MARKED_CELLS = 2000  # more cells than this leave no room for a dash or hatching in each
_SEPARATED_PARENTS = 40
SHOWN = 2048  # rows and columns of a panel; more cannot be told apart, and a matrix of them fills the memory


def thinned(state: LayerState) -> tuple[LayerState, int]:
    """The layer on the CPU in single precision, rows sorted by parent, and every how many inputs one is kept.

    Whole parents are left out when there are too many rows, so that the children of each one shown are complete.
    """
    numbers, parents = state.parents.cpu().unique(return_inverse=True)
    order = torch.argsort(parents, stable=True)
    order = order[parents[order] % stride(state.width, SHOWN) == 0]
    step = stride(state.weight.shape[1], SHOWN)
    weight, mask = state.weight.cpu()[order, ::step].float(), state.mask.cpu()[order, ::step]
    return LayerState(weight, mask, numbers[parents[order]]), step


def panel_size(rows: int, columns: int) -> tuple[float, float]:
    """Width and height in inches of a panel, large enough for its cells and never larger than a page."""
    return float(np.clip(0.3 * columns, 3.6, 8.0)), float(np.clip(0.3 * rows, 2.4, 8.0))


def stride(count: int, limit: int) -> int:
    """Every how many entries one is shown, so that at most ``limit`` are."""
    return -(-count // limit)


def finite(values: NDArray) -> NDArray:
    """The values without NaN and infinity, so that the figure of a run that diverged can still be drawn."""
    return values[np.isfinite(values)]


def draw_cells(
    ax: Axes, cells: NDArray, empty: NDArray | None = None, *, marked: bool, signs: bool = False, **image: object
) -> AxesImage:
    """Draw a matrix, one cell an entry; empty cells stay white.

    Args:
        ax: The panel.
        cells: ``(rows, columns)``.
        empty: Bool of that shape, the cells that hold no weight.
        marked: Whether there is room to hatch empty cells and to dash negative ones; see :func:`has_room`.
        signs: Whether negative cells are to be dashed, for prints without colour.
        image: Passed to ``Axes.imshow``.

    Returns:
        The image, for a colour bar.
    """
    ax.patch.set(facecolor="white", hatch=HATCH if marked else None, edgecolor="0.7", linewidth=0)
    shown = np.ma.masked_array(cells, np.zeros(cells.shape, bool) if empty is None else empty)
    # Matplotlib's default smooths a panel of few tall cells: neighbouring neurons would run into each other.
    drawn = ax.imshow(shown, **{"aspect": "auto", "interpolation": "nearest", **image})  # type: ignore[arg-type]
    if signs and marked:
        rows, columns = np.nonzero(np.ma.filled(shown < 0, False))
        ax.scatter(columns, rows, marker="_", s=14, linewidths=0.8, color="black")
    return drawn


def scale_limit(values: NDArray) -> float:
    """The magnitude at which a colour scale ends: all but the largest 0.1 % of the non-zero values lie within."""
    magnitudes = finite(np.abs(values[values != 0]))
    return float(np.quantile(magnitudes, 0.999, method="higher")) if magnitudes.size else 1.0


def label_inputs(ax: Axes, count: int, step: int, axis: str = "x") -> None:
    """Number the input features along an axis, thinned to what can be read."""
    name = "input feature" if step == 1 else f"input feature (one in {step} shown)"
    target = ax.xaxis if axis == "x" else ax.yaxis
    locator = MaxNLocator(nbins=8, integer=True, min_n_ticks=1)
    ticks = [tick for tick in locator.tick_values(0, (count - 1) * step) if 0 <= tick <= (count - 1) * step]
    target.set_ticks([tick / step for tick in ticks], labels=[f"{tick:.0f}" for tick in ticks])
    target.set_label_text(name)


def label_parents(ax: Axes, parents: NDArray, name: str) -> None:
    """Name the run of rows that descends from each parent, with a line between runs where they are few.

    Args:
        ax: The panel.
        parents: ``(rows,)``, sorted.
        name: Label of the axis.
    """
    numbers, starts, counts = np.unique(parents, return_index=True, return_counts=True)
    shown = slice(None, None, stride(len(numbers), 16))
    ax.set_yticks((starts + (counts - 1) / 2)[shown], labels=[str(number) for number in numbers[shown]])
    ax.set_ylabel(name)
    if len(numbers) <= _SEPARATED_PARENTS:
        for start in starts[1:]:
            ax.axhline(start - 0.5, color="black", linewidth=0.8)


def explain(figure: Figure, *, marked: bool, empty: bool = False, signs: bool = False) -> None:
    """Say below the panels how cells without a weight and negative ones look.

    Args:
        figure: The figure.
        marked: As in :func:`draw_cells`.
        empty: Whether some cells hold no weight.
        signs: Whether some cells are negative.
    """
    handles: list[Artist] = []
    if empty:
        handles.append(Patch(facecolor="white", edgecolor="0.7", hatch=HATCH if marked else None, label="no weight"))
    if signs and marked:
        handles.append(Line2D([], [], linestyle="", marker="_", color="black", label="negative"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def has_room(*matrices: NDArray) -> bool:
    """Whether the cells of all these matrices are drawn large enough to carry a mark."""
    return all(matrix.size <= _MARKED_CELLS for matrix in matrices)
