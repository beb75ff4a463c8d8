"""How alike two networks of one form are: copies have equal masks, and weights that point the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fpe_lightning.sparse.masked import mask_of

Form = tuple[tuple[str, str, tuple[int, ...], str], ...]

SAMPLES = 65536

ALIKE = 0.25
"""Cosine of the weights of two networks above which one is a copy of the other; independent networks are near 0."""


def most_alike(module: nn.Module, others: Mapping[str, nn.Module]) -> tuple[float, str] | None:
    """Of other parts of the same form, the one with the same masks whose weights are the most alike, and how alike."""
    alike = [(_cosine(module, other), name) for name, other in others.items() if _same_masks(module, other)]
    # The first of equals: names come in the order of the model.
    return max(alike, key=lambda each: each[0], default=None)


def form_of(module: nn.Module) -> Form:
    """Names, shapes and owners of all parameters, in order."""
    return tuple(
        (prefix, name, () if is_lazy(parameter) else tuple(parameter.shape), type(owner).__name__)
        for prefix, owner in module.named_modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    )


def _masks(module: nn.Module) -> list[Tensor | None]:
    return [mask_of(owner, name) for owner in module.modules() for name in owner._parameters]


def is_masked(module: nn.Module) -> bool:
    """Whether any parameter of a module is masked."""
    return any(mask is not None for mask in _masks(module))


def _same_masks(module: nn.Module, other: nn.Module) -> bool:
    return all(
        left is right is None or (left is not None and right is not None and torch.equal(left, right.to(left.device)))
        for left, right in zip(_masks(module), _masks(other), strict=True)
    )


@torch.no_grad()
def _cosine(module: nn.Module, other: nn.Module) -> float:
    """How alike the weight matrices of two networks of one form are: 1 for copies, about 0 for independent ones."""
    product = own = others = 0.0
    for left, right in zip(module.parameters(), other.parameters(), strict=True):
        if left is right or left.dim() < 2:  # biases and norms are alike in independent networks
            continue
        one, two = sample_of(left), sample_of(right).to(left.device)
        product, own, others = product + float(one @ two), own + float(one @ one), others + float(two @ two)
    return product / (own * others) ** 0.5 if own and others else 0.0


def sample_of(parameter: nn.Parameter) -> Tensor:
    """Some of the entries of a parameter, always the same ones."""
    value: Any = parameter.detach()
    flat = (value.full_tensor() if hasattr(value, "full_tensor") else value).flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)].double()
