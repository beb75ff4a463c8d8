"""A small convolutional network; its classifier head and its convolutions can expand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.arguments import check_integers
from fpe_lightning.networks.folder import SavedInFolder


class SmallCNN(SavedInFolder):
    """Convolution blocks (3x3, BatchNorm, ReLU, 2x2 max-pool), then a head with one hidden, normalised layer.

    Sites: ``head.0`` (the hidden layer of the head) and every convolution, ``blocks.0.0`` and so on.

    Args:
        in_channels: Channels of the pictures.
        image_size: Height and width of the pictures, in pixels; at least ``2 ** len(channels)``.
        num_classes: Size of the output.
        channels: Output channels of the blocks.
        hidden: Width of the head's hidden layer.

    Raises:
        ValueError: If the pictures are too small for the blocks.

    Example:
        >>> import torch
        >>> SmallCNN(3, 32, 10)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32),
        hidden: int = 16,
    ) -> None:
        super().__init__()
        check_integers({"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes})
        check_integers({"channels": channels if isinstance(channels, str) else [*channels], "hidden": hidden})
        if not channels:
            raise ValueError("A SmallCNN needs a block of convolutions, found channels=[].")
        side = image_size // 2 ** len(channels)
        if side < 1:
            raise ValueError(f"{len(channels)} blocks halve {image_size} pixels to zero; use fewer blocks.")
        sizes = [in_channels, *channels]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))
                for i, o in itertools.pairwise(sizes)
            ),
            nn.Flatten(),
        )
        features = sizes[-1] * side * side
        self.head = nn.Sequential(
            nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
        self.in_features, self.out_features = (in_channels, image_size, image_size), num_classes

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, image_size, image_size)`` to ``(batch, num_classes)``."""
        return self.head(self.blocks(x))
