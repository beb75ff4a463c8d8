"""A network that is expanded at construction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.expansion import AnyExpansion, expand


class Expanded(nn.Module):
    """A network whose neurons are split at construction; ``ExpansionCallback`` splits in the middle of training.

    Args:
        network: Any network that maps ``(batch, in_features)`` to ``(batch, out_features)`` and has these attributes.
        expansion: How to expand, such as ``fpe.Paper(alpha=4)``; None expands by shape.

    Raises:
        ValueError: If the network cannot be expanded so.

    Example:
        >>> import fpe_lightning as fpe
        >>> from fpe_lightning.networks import MLP
        >>> wide = Expanded(MLP(512, 8, 94), fpe.Paper(alpha=2))
        >>> fpe.count_nonzeros(wide) == fpe.count_nonzeros(MLP(512, 8, 94))
        True
    """

    def __init__(self, network: nn.Module, expansion: AnyExpansion | None = None) -> None:
        super().__init__()
        self.network = network
        self.in_features, self.out_features = network.in_features, network.out_features
        expand(network, expansion, example_inputs=torch.zeros(2, int(network.in_features)))  # type: ignore[arg-type]

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_features)`` to ``(batch, out_features)``."""
        return self.network(x)
