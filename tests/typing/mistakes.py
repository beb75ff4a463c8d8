"""Mistakes that a type checker catches before a run: one in each marked line, and none elsewhere. Nobody calls it."""

from __future__ import annotations

from torch import nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback


def mistakes() -> None:
    """Lines that fail when they run."""
    model = nn.Linear(4, 2)
    fpe.Expansion(partition="radnom")  # mistake
    fpe.Expansion(prune="incomming")  # mistake
    fpe.Expansion(layout="maskd")  # mistake
    fpe.Expansion(alpha="2")  # mistake
    fpe.expand(model, alhpa=2)  # mistake
    print(fpe.count_nonzeros(model).shape)  # mistake
    ExpansionCallback(alpha=2, epoch="2")  # mistake
