"""Draw metrics over a run, with a line at each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fpe_lightning.extras import extra

with extra("template", "A figure"):
    from matplotlib.figure import Figure


_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKS = "so^DvP"


def curves_figure(curves: Mapping[str, Sequence[tuple[int, float]]], splits: Sequence[int], label: str) -> Figure:
    """Draw metrics against optimizer steps, with a dashed vertical line at each split.

    Args:
        curves: Steps and values of each metric, by name.
        splits: Optimizer steps of the splits.
        label: Label of the vertical axis.

    Returns:
        A figure with one panel; curves differ in colour and in mark.

    Example:
        >>> from fpe_lightning.interference.curves import curves_figure
        >>> figure = curves_figure({"val/loss": [(2, 1.0), (4, 0.5)]}, splits=[2], label="loss")
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['val/loss', 'split (step 2)']
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    ax = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        ax.plot(
            steps,
            values,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKS[number % len(_MARKS)],
            markevery=max(1, len(steps) // 12),
            markersize=4,
            linewidth=1.4,
            label=name,
        )
    for number, step in enumerate(splits):
        name = f"split (step {step})" if len(splits) == 1 else f"splits (steps {', '.join(map(str, splits))})"
        ax.axvline(step, color="black", linestyle="--", linewidth=1.2, label=name if number == 0 else None)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(label)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return figure
