"""``python -m fpe_lightning.advise --module my_project.Net --input_shape=[1,512]``: what to expect of a split."""

from __future__ import annotations

import torch
from torch import nn

from fpe_lightning.command_line import Parser
from fpe_lightning.expansion import advise_sites
from fpe_lightning.extras import extra

with extra("template", "The command line"):
    from jsonargparse import auto_cli


def advice(module: nn.Module, input_shape: list[int]) -> str:
    """Say for each width of a module how many children suit it, whether to rewire, the memory to expect, and why.

    Args:
        module: The class of the module, with its arguments under ``--module.``.
        input_shape: Shape of a batch that the module's ``forward`` takes, such as ``[1,64]``.

    Returns:
        A line for each width.

    Example:
        >>> print(advice(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)), [1, 64]))
        0: alpha=4, and rewire; memory x5 masked, x1.4 folded. 8 neurons are few, and 64 inputs are enough for ...
    """
    return "\n".join(map(str, advise_sites(module, torch.zeros(input_shape))))


def main(args: list[str] | None = None) -> None:
    """Run the command, and print the advice or one sentence."""
    try:
        print(auto_cli(advice, args=args, as_positional=False, parser_class=Parser))
    except (TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
