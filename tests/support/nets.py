"""Small models for the tests of the expansion."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.sites import Site, find_sites
from tests.support.proof import prove_site, prove_sites


def mlp(*sizes: int, bias: bool = True, norm: bool = False, seed: int = 0) -> nn.Sequential:
    """A multi-layer perceptron with tanh, so that no neuron is dead."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes[:-1]):
            layers.append(nn.Linear(inputs, outputs, bias=bias))
            layers.extend([nn.BatchNorm1d(outputs)] if norm else [])
            layers.append(nn.Tanh())
        return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=bias))


def cnn(seed: int = 0) -> nn.Sequential:
    """Two convolutions with BatchNorm, a flattened head with one hidden layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2)),
        )


def train(model: nn.Module, optimizers: Optimizer | Sequence[Optimizer], x: Tensor, steps: int = 3) -> None:
    """Some steps with gradients that depend on everything."""
    for optimizer in [optimizers] if isinstance(optimizers, Optimizer) else optimizers:
        for step in range(steps):
            optimizer.zero_grad()
            (model(x * (1 + step)) - 1).pow(2).sum().backward()
            optimizer.step()


def snapshot(model: nn.Module, *optimizers: Optimizer) -> dict[str, Any]:
    """Everything that must not change where an expansion is refused: objects, classes, values."""
    return {
        "classes": [(name, type(module)) for name, module in model.named_modules()],
        "attributes": [
            {key: value for key, value in vars(module).items() if isinstance(value, (int, tuple))}
            for module in model.modules()
        ],
        "objects": [id(tensor) for tensor in (*model.parameters(), *model.buffers())],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "groups": [[[id(p) for p in group["params"]] for group in o.param_groups] for o in optimizers],
        "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers],
        "generator": torch.get_rng_state(),
    }


def equal(left: Any, right: Any) -> bool:
    """Equality of nested containers that hold tensors, bit by bit (NaN equals NaN)."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return (
            isinstance(left, Tensor)
            and isinstance(right, Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and torch.equal(left.nan_to_num(nan=7e7), right.nan_to_num(nan=7e7))
        )
    if isinstance(left, dict):
        return isinstance(right, dict) and list(left) == list(right) and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return (
            type(left) is type(right)
            and len(left) == len(right)
            and all(equal(a, b) for a, b in zip(left, right, strict=True))
        )
    return bool(left == right)


class Net(nn.Module):
    """A module made of parts and a forward function."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def proven(model: nn.Module, example: object, **options: bool) -> list[Site]:
    """The sites of a model, each of which has passed the duplication proof alone and all together."""
    sites = find_sites(model, example, **options)
    for site in sites:
        assert prove_site(model, site, example).holds, site.name
    assert not sites or prove_sites(model, sites, example).holds
    return sites


def reasons(model: nn.Module, example: object, **options: bool) -> dict[str, str]:
    """The reason of each refusal."""
    return {refusal.name: refusal.reason for refusal in find_sites(model, example, explain=True, **options)[1]}
