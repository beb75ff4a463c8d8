"""``python -m fpe_lightning.checkpoints --path a.ckpt --target b.ckpt --module my_project.LitModel``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import nn

from fpe_lightning.checkpoints.expand_file import expand_checkpoint
from fpe_lightning.command_line import Parser
from fpe_lightning.expansion import BaseExpansion, ExpansionReport


def expand(
    path: Path,
    target: Path,
    module: nn.Module,
    expansion: BaseExpansion | dict[str, BaseExpansion] | None = None,
    alpha: int | None = None,
    seed: int | None = None,
    sites: list[str] | None = None,
    exclude: list[str] | None = None,
    input_shape: list[int] | None = None,
) -> ExpansionReport:
    """Split the neurons of a checkpoint, in a new file.

    Args:
        path: The checkpoint, in one file.
        target: The file to write; it must not exist yet.
        module: The class of the module that the checkpoint belongs to, with its arguments under ``--module.``.
        expansion: How to expand, such as ``Paper`` with its fields under ``--expansion.``, or a mapping from names or
            globs of sites to expansions; by shape by default.
        alpha: Children of each neuron, where no expansion is given.
        seed: Every draw depends on it, where no expansion is given.
        sites: Names or globs of the sites to split; all by default.
        exclude: Names or globs of sites that are left as they are.
        input_shape: Shape of a batch that the module's ``forward`` takes, such as ``[1,64]``; by default its
            ``example_input_array``, or the calls that an ``ExpansionCallback`` noted in the checkpoint.

    Returns:
        Widths, fan-ins and non-zeros before and after.

    Example:
        >>> expand("no/such.ckpt", "wide.ckpt", nn.Linear(2, 1))
        Traceback (most recent call last):
        ...
        ValueError: There is no checkpoint at no/such.ckpt; check the path.
    """
    example: Any = None if input_shape is None else torch.zeros(input_shape)
    return expand_checkpoint(
        path,
        target,
        module,
        expansion,
        alpha=alpha,
        seed=seed,
        sites=sites,
        exclude=exclude,
        example_inputs=example,
    )


def main(args: list[str] | None = None) -> None:
    """Run the command, and print the report or one sentence."""
    try:
        print(auto_cli(expand, args=args, as_positional=False, parser_class=Parser))
    except (TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
