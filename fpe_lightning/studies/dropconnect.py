"""DropConnect at the budget of a split: a wide network that keeps, in every step, as many weights as the budget has."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fpe_lightning.networks import MLP
from fpe_lightning.networks.sparse_init import scaled_uniform_


class DropConnectMLP(MLP):
    """A wide dense network whose incoming weights are dropped at random in every step of training.

    Calling it gives the mean network, with all weights: what is tested spends more non-zeros than the budget, what any
    step trains does not (on average).

    Args:
        in_features: Size of the input.
        hidden: Hidden widths.
        out_features: Size of the output.
        keep: Probability that a weight of a hidden layer stays, in (0, 1].
        seed: Of what is dropped.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].

    Example:
        >>> network = DropConnectMLP(100, [50], 2, keep=0.25)
        >>> (drop,) = network.draw()
        >>> drop.unique(), 0.2 < float((drop > 0).float().mean()) < 0.3
        (tensor([0., 4.]), True)
    """

    def __init__(self, in_features: int, hidden: list[int], out_features: int, keep: float, seed: int = 0) -> None:
        super().__init__(in_features, hidden, out_features)
        if not 0 < keep <= 1:
            raise ValueError(f"DropConnect keeps a weight with a probability in (0, 1], found {keep}.")
        self.keep = keep
        self._generator = Generator().manual_seed(seed)
        for layer in self.linear_layers()[:-1]:
            scaled_uniform_(layer, keep)

    def draw(self) -> list[Tensor]:
        """What the weights of each hidden layer are multiplied by in one step: 0, or ``1 / keep``."""
        shapes = [layer.weight.shape for layer in self.linear_layers()[:-1]]
        return [(torch.rand(shape, generator=self._generator) < self.keep) / self.keep for shape in shapes]
