"""``python -m fpe_lightning.checkpoints --path a.ckpt --target b.ckpt --module my_project.LitModel``: widen a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import nn

from fpe_lightning.checkpoints.expand_file import expand_checkpoint
from fpe_lightning.expansion.report import ExpansionReport


def widen(
    path: Path,
    target: Path,
    module: nn.Module,
    alpha: int | dict[str, int] = 2,
    partition: str | None = None,
    groups: list[list[int]] | None = None,
    sites: list[str] | None = None,
    budget: str | None = None,
    seed: int = 0,
    layout: str | None = None,
    optimizer_state: str = "follow",
    input_shape: list[int] | None = None,
) -> ExpansionReport:
    """Split the neurons of a checkpoint, in a new file.

    Args:
        path: The checkpoint, in one file.
        target: The file to write; it must not exist yet.
        module: The class of the module that the checkpoint belongs to, with its arguments under ``--module.``.
        alpha: Children of each neuron, or a mapping from names of sites to it.
        partition: Which child inherits which input; as suits the shape of each layer by default.
        groups: For ``clause``: lists of input indices, one a clause.
        sites: Names or globs of the sites to split; all by default.
        budget: Which weights make room; ``total`` beside a partition.
        seed: Every draw depends on it.
        layout: How the result is stored; ``masked`` beside a partition or a budget.
        optimizer_state: ``follow`` or ``reset``.
        input_shape: Shape of a batch that the module's ``forward`` takes, such as ``[1,64]``; by default its
            ``example_input_array``, or what an ``ExpansionCallback`` noted in the checkpoint.

    Returns:
        Widths, fan-ins and non-zeros before and after.

    Example:
        >>> widen("no/such.ckpt", "wide.ckpt", nn.Linear(2, 1))
        Traceback (most recent call last):
        ...
        ValueError: There is no checkpoint at no/such.ckpt; check the path.
    """
    example: Any = None if input_shape is None else torch.zeros(input_shape)
    options = (alpha, partition, groups, sites, budget, seed, layout, optimizer_state)
    return expand_checkpoint(path, target, module, *options, example_inputs=example)


def main(args: list[str] | None = None) -> None:
    """Run the command, and print the report or one sentence."""
    try:
        print(auto_cli(widen, args=args, as_positional=False))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
