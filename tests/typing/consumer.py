"""A project that uses this library: mypy --strict and pyright accept it. Nobody calls it."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.callbacks import ExpansionCallback, InterferenceMonitor, SaturationTrigger
from fpe_lightning.modules import Classifier
from fpe_lightning.networks import MLP


class Halves:
    """A partition of the project's own."""

    def __call__(self, weight: Tensor, alive: Tensor, alpha: int, generator: torch.Generator) -> Tensor:
        """Return the child of each input."""
        return torch.arange(alive.shape[1]).mul(alpha).div(alive.shape[1], rounding_mode="floor").expand(alive.shape)


def main() -> None:
    """Expand in every documented way."""
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    sites: list[fpe.Site] = fpe.find_sites(model, torch.randn(1, 64))
    report: fpe.ExpansionReport = fpe.expand(model, alpha=2, optimizer=optimizer, example_inputs=torch.randn(1, 64))
    counts: tuple[int, int] = (report.nonzeros_before, fpe.count_nonzeros(model))
    print(sites, counts)
    fpe.expand(
        model, {"0": fpe.Blocks(groups=2)}, example_inputs=torch.randn(1, 64), sites=[site.name for site in sites]
    )
    fpe.load_expanded_state_dict(model, model.state_dict())

    random = fpe.Expansion(alpha=2, partition="random", prune="incoming", layout="masked")
    fpe.Expansion(partition=fpe.partitions.Shared(groups=4), prune=fpe.pruning.Magnitude(scope="model"))

    fpe.Paper(alpha=4, partition=Halves())
    trainer = L.Trainer(
        callbacks=[
            ExpansionCallback(random, epoch=2),
            ExpansionCallback(alpha=2, trigger=SaturationTrigger("val/accuracy")),
            InterferenceMonitor(),
        ]
    )
    trainer.fit(Classifier(MLP(64, 8, 3)))
