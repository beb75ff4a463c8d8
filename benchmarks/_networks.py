"""Three networks, small enough for a CPU, with their training data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fpe_lightning.networks import MLP, SmallCNN

Split = tuple[Tensor, Tensor]
CLASSES = 94


class FeedForward(nn.Module):
    """The feed-forward half of a transformer block: norm, two linear layers, residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class FeedForwardStack(nn.Module):
    """Patches of a picture through feed-forward halves of ViT-S blocks (384 wide, 1536 hidden), then a linear head."""

    def __init__(self, depth: int = 2, width: int = 384, patch: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2, width))
        self.blocks = nn.Sequential(*(FeedForward(width, 4 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear((32 // patch) ** 2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``(batch, 3, 32, 32)`` to ``(batch, 94)``."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(tokens)).flatten(1))


@dataclass(frozen=True)
class Task:
    """A network and its training.

    Attributes:
        make: Builds the dense network.
        data: ``"embeddings"`` or ``"pictures"`` of the embedded default data.
        sites: Names or globs of the sites to split.
        outgoing: The rule for outgoing weights of blocks; their incoming columns are pruned.
        batch: Samples per step.
        rate: Learning rate of Adam.
    """

    make: Callable[[], nn.Module]
    data: str
    sites: str
    outgoing: Literal["copy", "partition"]
    batch: int
    rate: float


TASKS = {
    "probe": Task(
        lambda: MLP(512, 64, CLASSES),
        "embeddings",
        "layers.0",
        "copy",
        256,
        3e-3,
    ),
    "ffn": Task(FeedForwardStack, "pictures", "blocks.*", "partition", 32, 1e-3),
    "cnn": Task(
        lambda: SmallCNN(3, 32, CLASSES, (32, 64), 64),
        "pictures",
        "head.0",
        "copy",
        64,
        1e-3,
    ),
}


def load(task: Task) -> tuple[Split, Split]:
    """All samples of the training and of the test split."""
    # Imported here: processes that get loaded data start faster without these modules.
    from fpe_lightning.data import EmbeddingDataModule, ImageDataModule

    data: EmbeddingDataModule | ImageDataModule
    if task.data == "embeddings":
        data = EmbeddingDataModule(dataset="glyphs", encoder="glyph-clip", batch_size=4096)
    else:
        data = ImageDataModule("glyphs", batch_size=4096)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    train, test = (list(loader) for loader in (data.train_dataloader(), data.test_dataloader()))
    both = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])) for batches in (train, test)]
    return both[0], both[1]
