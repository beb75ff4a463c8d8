"""Measure on random partitions how often two clauses meet in one child, and how many clauses stay whole.

``python -m benchmarks.collision_law`` partitions the inputs of many neurons at random and counts. Two clauses of ``k``
literals should meet with probability ``alpha^-(2k-1)``; a balanced partition of few inputs stays below that.
Coverage is a figure of a layer: the share of clauses that are whole in some child.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fpe_lightning.interference import clause_collisions, clause_coverage
from fpe_lightning.partitions import Random


@dataclass(frozen=True)
class Measured:
    """One cell.

    Attributes:
        literals: Number of literals of a clause.
        alpha: Children of a neuron.
        collisions: Share of pairs of clauses that meet in a child, over all drawn neurons.
        coverage: Share of clauses that are whole in a child, averaged over layers.
    """

    literals: int
    alpha: int
    collisions: float
    coverage: float

    @property
    def law(self) -> float:
        """The rate of collisions under independent draws."""
        return float(self.alpha) ** -(2 * self.literals - 1)


def measure(literals: int, alpha: int, clauses: int, neurons: int, layers: int, inputs: int, seed: int = 0) -> Measured:
    """Draw layers and count.

    Args:
        literals: Number of literals of a clause.
        alpha: Children of a neuron.
        clauses: Number of disjoint clauses.
        neurons: Number of neurons of a layer.
        layers: Number of layers to draw.
        inputs: Number of inputs; inputs beyond the clauses only fill the layer.
        seed: Seed of the draws.

    Returns:
        The rates.
    """
    # Disjoint clauses of adjacent inputs; the partition is random, so the places do not matter.
    groups = [list(range(c * literals, (c + 1) * literals)) for c in range(clauses)]
    alive = torch.ones(neurons, inputs, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    drawn = [Random()(torch.ones(neurons, inputs, 1), alive, alpha, generator) for _ in range(layers)]
    met = torch.stack([clause_collisions(layer, groups) for layer in drawn])
    covered = torch.stack([clause_coverage(layer, groups) for layer in drawn])
    return Measured(literals, alpha, float(met.mean()), float(covered.mean()))


def figure(cells: Sequence[Measured]) -> Figure:
    """Draw both rates against alpha; marks are measurements, lines are the law."""
    drawn = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for literals, marker, color in zip((2, 3, 4), "so^", ("#000000", "#0072B2", "#D55E00"), strict=True):
        own = [cell for cell in cells if cell.literals == literals]
        alphas = [cell.alpha for cell in own]
        label = f"{literals} literals"
        left.plot(alphas, [cell.law for cell in own], color=color, linewidth=1)
        left.plot(alphas, [cell.collisions or float("nan") for cell in own], marker, color=color, label=label)
        right.plot(alphas, [cell.coverage for cell in own], marker + "-", color=color, linewidth=1, label=label)
    left.set(yscale="log", ylabel="pairs of clauses that meet in a child", title="collisions; lines: alpha^-(2k-1)")
    right.set(ylim=(0, 1.05), ylabel="clauses whole in some child", title="coverage of a layer")
    for ax in (left, right):
        ax.set_xlabel("children of a neuron, alpha")
        ax.grid(color="0.92")
        ax.legend(frameon=False)
    return drawn


def main() -> None:
    """Measure, print one table and write one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clauses", type=int, default=8, help="disjoint clauses")
    parser.add_argument("--neurons", type=int, default=32, help="neurons of a layer")
    parser.add_argument("--layers", type=int, default=1000, help="layers drawn for each cell")
    parser.add_argument("--inputs", type=int, default=96, help="inputs of the layer")
    parser.add_argument("--figure", type=Path, help="where to write a figure, .png or .svg")
    arguments = parser.parse_args()
    grid = [(literals, alpha) for literals in (2, 3, 4) for alpha in (2, 3, 4, 6, 8)]
    cells = [
        measure(*cell, arguments.clauses, arguments.neurons, arguments.layers, arguments.inputs)
        for cell in track(grid, "Drawing partitions")
    ]
    table = Table(title=f"{arguments.clauses} clauses, {arguments.neurons} neurons, {arguments.inputs} inputs")
    for column in ("literals k", "alpha", "collisions", "alpha^-(2k-1)", "ratio", "coverage"):
        table.add_column(column, justify="right")
    for cell in cells:
        numbers = (
            f"{cell.collisions:.2e}",
            f"{cell.law:.2e}",
            f"{cell.collisions / cell.law:.2f}",
            f"{cell.coverage:.2f}",
        )
        table.add_row(str(cell.literals), str(cell.alpha), *numbers)
    Console().print(table)
    if arguments.figure:
        figure(cells).savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
    main()
