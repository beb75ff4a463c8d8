"""The dense parent and the split network side by side: values over a run, a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from fpe_lightning.callbacks.lightnings import instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass
class Comparison:
    """What a run measured of both.

    Attributes:
        splits: Epoch and optimizer step of each split.
        widths: Neurons before the first split and now, by site.
        nonzeros: Non-zero parameters of the parent and of the split network.
        curves: By metric, one point for each validation: epochs trained, the network's value, the parent's value. Up to
            the first split both are one network.
    """

    splits: list[tuple[float, int]] = field(default_factory=list)
    widths: dict[str, tuple[int, int]] = field(default_factory=dict)
    nonzeros: tuple[int, int] = (0, 0)
    curves: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)

    def add(self, metric: str, epoch: float, network: float, parent: float) -> None:
        """Add the values of one validation; up to the first split both are equal."""
        self.curves.setdefault(metric, []).append((epoch, network, parent))

    def since_split(self, metric: str) -> list[tuple[float, float, float]]:
        """The points of a metric after the first split."""
        start = self.splits[0][0] if self.splits else math.inf
        return [point for point in self.curves.get(metric, []) if point[0] > start]

    def best(self, metric: str, mode: str) -> tuple[float, float] | None:
        """The best value of the parent and of the network since the first split; None where nothing was measured."""
        points = self.since_split(metric)
        choose = max if mode == "max" else min
        return (choose(each[2] for each in points), choose(each[1] for each in points)) if points else None

    def columns(self, metrics: Sequence[str], monitor: str, mode: str) -> dict[str, tuple[float, float]]:
        """Values of the parent and of the network, by title: the best of the monitored metric, the last of others."""
        found: dict[str, tuple[float, float]] = {}
        for name in metrics:
            points, best = self.since_split(name), self.best(name, mode)
            if best is not None:
                found |= {f"best {name}": best} if name == monitor else {name: (points[-1][2], points[-1][1])}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain containers of numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Comparison:
        """Continue from what :meth:`state_dict` returned."""
        return cls(**state)


def monitoring_checkpoint(trainer: pl.Trainer) -> Any:
    """The ModelCheckpoint that follows a metric, or None."""
    found = instances(trainer.checkpoint_callbacks, "callbacks", "ModelCheckpoint")
    return next((each for each in found if each.monitor), None)


def monitored(trainer: pl.Trainer, monitor: str | None, mode: str | None) -> tuple[str, str]:
    """Name of the metric whose best value counts, or "", and ``"max"`` or ``"min"``; ``ModelCheckpoint`` fills None."""
    checkpoint = monitoring_checkpoint(trainer)
    if monitor is not None or checkpoint is None:
        return monitor or "", mode or "max"
    return checkpoint.monitor, mode or checkpoint.mode


def comparison_table(comparison: Comparison, metrics: Mapping[str, tuple[float, float]], caption: str = "") -> Table:
    """A table with a row for the dense parent, one for the split network, and their difference.

    Args:
        comparison: Widths, non-zeros and splits.
        metrics: Values of the parent and of the network, by the title of their column.
        caption: A line below the table.

    Returns:
        The table, for ``rich.print``.

    Example:
        >>> comparison = Comparison([(2, 24)], {"net.0": (8, 32)}, (315, 315))
        >>> table = comparison_table(comparison, {"val/accuracy": (0.5, 0.75)})
        >>> [list(column.cells) for column in table.columns[1:]]
        [['8', '32', 'x4'], ['315', '315', '0'], ['0.5000', '0.7500', '+0.2500']]
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # Without vertical lines, six columns fit into a terminal of 80 characters.
    table = Table(title="Did the split pay?", caption=caption or None, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for title in ("width", "non-zeros", *metrics):
        table.add_column(title.replace("best ", "best\n"), justify="right", overflow="fold")
    before, after = comparison.nonzeros
    narrow, wide = (sum(each[number] for each in comparison.widths.values()) for number in (0, 1))
    ratio = f"x{wide / narrow:.3g}" if narrow else ""
    values = list(metrics.values())
    table.add_row("dense parent", f"{narrow:,}", f"{before:,}", *(f"{parent:.4f}" for parent, _ in values))
    table.add_row("split network", f"{wide:,}", f"{after:,}", *(f"{network:.4f}" for _, network in values))
    differences = (f"{network - parent:+.4f}" for parent, network in values)
    table.add_row("difference", ratio, f"{after - before:,}", *differences, style="bold")
    return table


def comparison_caption(comparison: Comparison, metric: str | None) -> str:
    """When the run was split, and a metric on both sides of the first split.

    Example:
        >>> comparison = Comparison([(2, 24)])
        >>> for epoch, network, parent in [(1, 0.5, 0.5), (2, 0.6, 0.6), (3, 0.7, 0.65)]:
        ...     comparison.add("val/accuracy", epoch, network, parent)
        >>> comparison_caption(comparison, "val/accuracy")
        'Split before epoch 2 (step 24): val/accuracy 0.6000 before it, 0.7000 one validation later.'
    """
    moments = " and ".join(f"epoch {epoch:g} (step {step:,})" for epoch, step in comparison.splits)
    text = f"Split before {moments}"
    after = comparison.since_split(metric) if metric else []
    before = comparison.curves[metric][: -len(after)] if metric and after else []
    if before and after:
        text += f": {metric} {before[-1][1]:.4f} before it, {after[0][1]:.4f} one validation later"
    return f"{text}."


def comparison_figure(comparison: Comparison, metric: str) -> Figure:
    """A metric of the dense parent and of the split network over epochs, with a dashed line at each split.

    Args:
        comparison: The curves, splits and non-zeros.
        metric: The metric to draw.

    Example:
        >>> comparison = Comparison([(1, 12)], nonzeros=(315, 315))
        >>> comparison.add("val/accuracy", 1, 0.5, 0.5); comparison.add("val/accuracy", 2, 0.75, 0.5)
        >>> [line.get_label() for line in comparison_figure(comparison, "val/accuracy").axes[0].lines]
        ['dense parent', 'split network', 'split']
    """
    from matplotlib.figure import Figure  # takes a second to import
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=150)
    ax = figure.add_subplot()
    epochs, network, parent = zip(*comparison.curves[metric], strict=True)
    ax.plot(epochs, parent, color="#0072B2", marker="s", markevery=max(1, len(epochs) // 12), label="dense parent")
    ax.plot(epochs, network, color="#D55E00", marker="o", markevery=max(1, len(epochs) // 12), label="split network")
    for number, (epoch, _) in enumerate(comparison.splits):
        ax.axvline(epoch, color="black", linestyle="--", linewidth=1.2, label="split" if number == 0 else None)
    widths = [f"{name}: {before} → {after}" for name, (before, after) in list(comparison.widths.items())[:3]]
    widths += ["…"] if len(comparison.widths) > 3 else []
    before, after = comparison.nonzeros
    ax.set_title(f"{before:,} non-zeros before, {after:,} after the split\n{', '.join(widths)}", fontsize=11)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epochs trained")
    ax.set_ylabel(metric)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.legend(frameon=False)
    return figure
