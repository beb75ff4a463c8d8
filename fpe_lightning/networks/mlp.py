"""Multi-layer perceptrons with equally many non-zeros: dense, and wide and sparse from scratch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.arguments import check_integers, check_number
from fpe_lightning.networks.folder import SavedInFolder
from fpe_lightning.networks.sparse_init import ALLOCATIONS, allocate, sparsify_
from fpe_lightning.sparse.model_masks import count_nonzeros

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class MLP(SavedInFolder):
    """A dense multi-layer perceptron, the parent and the baseline of every comparison.

    Args:
        in_features: Size of the last axis of the input.
        hidden: Hidden widths, from input to output; an integer is one hidden layer.
        out_features: Size of the last axis of the output.
        activation: One of ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"``, ``"sigmoid"``.
        bias: Whether layers have biases.
        batch_norm: Whether a ``BatchNorm1d`` stands before each activation.
        dropout: Probability of dropping a hidden activation, in [0, 1).

    Raises:
        ValueError: If a size is below 1 or the activation is unknown.

    Example:
        >>> import torch
        >>> MLP(512, 8, 94)(torch.randn(2, 512)).shape
        torch.Size([2, 94])
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int],
        out_features: int,
        activation: str = "relu",
        bias: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_integers({"hidden": hidden, "in_features": in_features, "out_features": out_features})
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        sizes = [in_features, *widths, out_features]
        if not widths:
            raise ValueError(f"An MLP needs a hidden layer, found sizes {sizes}.")
        check_number("dropout", dropout)
        if activation not in ACTIVATIONS:
            raise ValueError(f"Unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}.")
        self.in_features, self.out_features = in_features, out_features
        layers: list[nn.Module] = []
        # Linear, norm, activation, dropout for each hidden layer; then the classifier alone.
        for inputs, outputs in itertools.pairwise(sizes[:-1]):
            layers.append(nn.Linear(inputs, outputs, bias=bias))
            layers.extend([nn.BatchNorm1d(outputs)] if batch_norm else [])
            layers.append(ACTIVATIONS[activation]())
            layers.extend([nn.Dropout(dropout)] if dropout else [])
        layers.append(nn.Linear(sizes[-2], sizes[-1], bias=bias))
        self.layers = nn.Sequential(*layers)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_features)`` to ``(batch, out_features)``."""
        return self.layers(x)

    def linear_layers(self) -> list[nn.Linear]:
        """The linear layers, from input to output."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]


class WideSparseMLP(MLP):
    """The baseline to beat: ``alpha`` times as wide, sparse from the start, as many non-zeros as the dense MLP.

    After Golubeva, Neyshabur and Gur-Ari (ICLR 2021): exact counts, static masks, and layers initialised from
    U(-s, s) with ``s = 1 / sqrt(fan_in * connectivity)``.

    Args:
        in_features: See :class:`MLP`.
        hidden: Hidden widths of the dense MLP whose budget is kept; this network is ``alpha`` times as wide.
        out_features: See :class:`MLP`.
        alpha: How many times as wide.
        allocation: Where the zeros are: ``"hidden"`` (all in the hidden layers, the classifier stays dense),
            ``"even"`` (the same density in every layer), or ``"fan_in"`` (as ``"hidden"``, and every neuron of a layer
            has the same number of inputs, to within one).
        seed: Of the masks.
        zero_bias: Whether the biases of hidden layers begin at zero, and not as large as the weights, which grow with
            sparsity. On inputs of unit length, such as embeddings, large biases silence neurons for good.
        activation: See :class:`MLP`.
        bias: See :class:`MLP`.
        batch_norm: See :class:`MLP`.
        dropout: See :class:`MLP`.

    Raises:
        ValueError: If ``alpha`` is below 1, or the budget cannot be met, for instance as the dense classifier alone is
            larger than it.

    Example:
        >>> count_nonzeros(WideSparseMLP(512, 8, 94, alpha=4)) == count_nonzeros(MLP(512, 8, 94))
        True
    """

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int],
        out_features: int,
        alpha: int = 2,
        allocation: str = "hidden",
        seed: int = 0,
        zero_bias: bool = False,
        activation: str = "relu",
        bias: bool = True,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if type(alpha) is not int or alpha < 1:
            raise ValueError(f"`alpha` has to be an integer of at least 1, found {alpha!r}.")
        check_integers({"hidden": hidden})
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        wide = [alpha * width for width in widths]
        super().__init__(in_features, wide, out_features, activation, bias, batch_norm, dropout)
        if allocation not in ALLOCATIONS:
            raise ValueError(f"Unknown allocation {allocation!r}; known: {', '.join(ALLOCATIONS)}.")
        # The budget is that of the dense MLP, biases and norms included: wider norms are paid by weights.
        norms = 2 * sum(widths) if batch_norm else 0
        sizes = [in_features, *widths, out_features]
        budget = sum(i * o + o * bias for i, o in itertools.pairwise(sizes)) + norms
        excess = count_nonzeros(self) - budget
        linears = self.linear_layers()
        counts = allocate([layer.weight.numel() for layer in linears], excess, allocation)
        sparsify_(linears, counts, allocation, seed)
        if zero_bias and bias:
            for layer in linears[:-1]:
                nn.init.zeros_(layer.bias)
