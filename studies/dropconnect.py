"""DropConnect: a wide network that keeps, in every step, as many weights as a split network has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from typing_extensions import override

from fpe_lightning.networks import MLP
from fpe_lightning.networks.sparse_init import scaled_uniform_


class DropConnectMLP(MLP):
    """A wide dense network whose incoming weights are dropped at random in every step of training.

    Calling it gives the mean network, with all weights. So the tested network has more non-zeros than a split one; the
    network of any training step has as many on average.

    Args:
        in_features: Size of the input.
        hidden: Hidden widths.
        out_features: Size of the output.
        keep: Probability that a weight of a hidden layer stays, in (0, 1].
        seed: Of the choice of dropped weights.

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
        self.keep = _checked(keep)
        self._generator = Generator().manual_seed(seed)
        for layer in self.linear_layers()[:-1]:
            scaled_uniform_(layer, keep)

    def draw(self) -> list[Tensor]:
        """The factors of the weights of each hidden layer in one step: 0, or ``1 / keep``."""
        return [_drawn(layer.weight, self.keep, self._generator) for layer in self.linear_layers()[:-1]]


class DropConnectNetwork(nn.Module):
    """Any network, chosen layers of which drop weights at random in every training step.

    In evaluation mode it is the mean network, as above.

    Args:
        network: Wide and dense; the weights of the chosen layers are drawn again, at a scale that suits ``keep``.
        layers: Names of its linear layers and convolutions that drop weights.
        keep: Probability that one of their weights stays, in (0, 1].
        seed: Of the choice of dropped weights.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].

    Example:
        >>> network = DropConnectNetwork(nn.Sequential(nn.Linear(8, 4)), ["0"], keep=0.5)
        >>> x = torch.ones(1, 8)
        >>> torch.equal(network(x), network(x)), torch.equal(network.eval()(x), network(x))
        (False, True)
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], keep: float, seed: int = 0) -> None:
        super().__init__()
        self.network, self.layers, self.keep = network, list(layers), _checked(keep)
        self._generator = Generator().manual_seed(seed)
        for name in self.layers:
            layer = network.get_submodule(name)
            assert isinstance(layer, (nn.Linear, nn.Conv2d))
            scaled_uniform_(layer, keep)

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.network(x)
        weights = {f"{name}.weight": self.network.get_parameter(f"{name}.weight") for name in self.layers}
        dropped = {name: weight * _drawn(weight, self.keep, self._generator) for name, weight in weights.items()}
        return torch.func.functional_call(self.network, dropped, (x,))


def _checked(keep: float) -> float:
    if not 0 < keep <= 1:
        raise ValueError(f"DropConnect keeps a weight with a probability in (0, 1], found {keep}.")
    return keep


def _drawn(weight: Tensor, keep: float, generator: Generator) -> Tensor:
    return (torch.rand(weight.shape, generator=generator) < keep) / keep
