"""A small vision transformer; its feed-forward layers can expand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.arguments import check_integers
from fpe_lightning.networks.folder import SavedInFolder


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        width: Size of a token.
        heads: Number of heads; divides ``width``.

    Example:
        >>> SelfAttention(16, 4)(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        batch, tokens, width = x.shape
        # (batch, tokens, 3, heads, size) -> three tensors (batch, heads, tokens, size).
        parts = self.query_key_value(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.project(seen.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """A pre-norm block: attention, then a feed-forward network, each added to its input.

    Args:
        width: Size of a token.
        heads: Number of attention heads; divides ``width``.
        hidden: Number of neurons of the feed-forward network.

    Example:
        >>> TransformerBlock(16, 4, 8)(torch.randn(2, 9, 16)).shape
        torch.Size([2, 9, 16])
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class SmallViT(SavedInFolder):
    """Patches, learned positions, pre-norm blocks, and a classifier on the mean of the tokens.

    Sites: the hidden layer of each feed-forward network, ``blocks.0.ffn.0`` and so on. The usual width is four times
    that of a token. The default here is narrow, so that neurons have to share features.

    Args:
        in_channels: Channels of the pictures.
        image_size: Height and width of the pictures, in pixels.
        num_classes: Size of the output.
        patch: Height and width of a patch, in pixels; divides ``image_size``.
        width: Size of a token.
        heads: Number of attention heads; divides ``width``.
        hidden: Number of neurons of the feed-forward network of each block, from input to output.

    Raises:
        ValueError: If the patches or heads do not divide evenly, or a block has no neurons.

    Example:
        >>> SmallViT(1, 32, 26)(torch.randn(2, 1, 32, 32)).shape
        torch.Size([2, 26])
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        patch: int = 8,
        width: int = 32,
        heads: int = 4,
        hidden: Sequence[int] = (8, 8),
    ) -> None:
        super().__init__()
        check_integers({"hidden": hidden if isinstance(hidden, str) else [*hidden], "num_classes": num_classes})
        if min(patch, width, heads) < 1 or image_size % patch or width % heads:
            raise ValueError(
                f"A ViT needs a patch that divides the pictures and heads that divide the width, found patch={patch} "
                f"of {image_size} pixels and {heads} heads of width {width}; change one of each."
            )
        if not hidden:
            raise ValueError("A ViT needs a block, found hidden=[].")
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, neurons) for neurons in hidden))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)
        self.in_features, self.out_features = (in_channels, image_size, image_size), num_classes

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, image_size, image_size)`` to ``(batch, num_classes)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))
