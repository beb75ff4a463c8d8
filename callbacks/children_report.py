"""A worked example of your own callback: log after each epoch how much the children of a neuron differ.

``ExpansionCallback`` calls ``on_after_expansion(trainer, pl_module, report)`` of any callback after each split.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from fpe_lightning import ExpansionReport
from fpe_lightning.sparse import parents_of


class ChildrenReport(pl.Callback):
    """Logs ``children/<site>/outgoing_spread`` after each epoch that follows a split.

    The children of a neuron start with equal outgoing weights. The spread is the standard deviation of these weights
    among siblings, averaged over parents and outputs. It is 0 at the split and grows as siblings specialise.

    Args:
        consumers: The name of the layer that reads each logged site, by the site's name.

    Example:
        >>> trainer = pl.Trainer(
        ...     callbacks=[ChildrenReport({"network.layers.0": "network.layers.2"})],
        ...     logger=False,
        ...     enable_checkpointing=False,
        ... )
    """

    def __init__(self, consumers: dict[str, str]) -> None:
        super().__init__()
        self.consumers = consumers
        self.split: set[str] = set()

    def on_after_expansion(self, trainer: pl.Trainer, pl_module: pl.LightningModule, report: ExpansionReport) -> None:
        """Remember which sites were split."""
        self.split |= {site.name for site in report.sites}

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for site in sorted(self.split & self.consumers.keys()):
            parents = parents_of(pl_module.get_submodule(site))
            weight = pl_module.get_submodule(self.consumers[site]).get_parameter("weight")
            pl_module.log(
                f"children/{site}/outgoing_spread", outgoing_spread(weight.detach(), parents.to(weight.device))
            )


def outgoing_spread(weight: Tensor, parents: Tensor) -> Tensor:
    """Mean standard deviation of outgoing weights among siblings.

    Args:
        weight: ``(outputs, children)``.
        parents: ``(children,)`` int64, the parent of each child.

    Example:
        >>> outgoing_spread(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """
    spreads = [weight[:, parents == parent].std(dim=1, correction=0).mean() for parent in parents.unique()]
    return torch.stack(spreads).mean()
