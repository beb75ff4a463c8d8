"""A wide and sparse start in one call: masks with an exact number of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fpe_lightning.rewiring.allocation import ALLOCATIONS
from fpe_lightning.rewiring.choose import largest
from fpe_lightning.rewiring.weights import check_layers
from fpe_lightning.sparse.layout import layout_of
from fpe_lightning.sparse.masked import mask_of, set_mask
from fpe_lightning.sparse.record import note_shape

SCORES = ("random", "gradient")

Layer = tuple[str, nn.Module]


def sparsify(
    model: nn.Module,
    density: float,
    *,
    allocation: str = "uniform",
    scores: str = "random",
    loss: Callable[[nn.Module], Tensor] | None = None,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    rescale: bool = True,
    seed: int = 0,
) -> dict[str, int]:
    """Give the layers of a model masks that keep ``density`` of their weights, exactly.

    It is the start that a split is compared with: a network that is wide and sparse from the beginning. Call it before
    training, and before an optimizer has state.

    Args:
        model: Changed in place. Linear layers and convolutions take part, those with tied weights do not.
        density: Share of their weights that is kept, in (0, 1): ``round(density * weights)`` over all layers together.
        allocation: ``"uniform"``: each layer has this density; ``"classifier_dense"``: the last layer keeps all of its
            weights, the others share the rest; ``"erk"``: layers with few inputs and outputs keep more.
        scores: ``"random"`` keeps weights at random; ``"gradient"`` keeps those with the largest
            ``|weight * gradient|`` of each layer (SNIP; Lee et al., ICLR 2019), the gradient being that of ``loss``.
        loss: A function of the model that returns a loss, such as ``lambda model: cross_entropy(model(x), y)``.
        layers: Names or globs of layers; None for all.
        exclude: Names or globs of layers that stay dense and do not count.
        rescale: Whether kept weights are divided by the square root of their layer's density, so that sums of inputs
            keep their variance.
        seed: Of random masks.

    Returns:
        The number of weights that each layer keeps, by its name.

    Raises:
        ValueError: If an argument is out of range, a name is not known, no layer is left, or a layer has a mask
            already. Nothing changes in that case.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> sparsify(model, density=0.25, allocation="classifier_dense")
        {'0': 272, '2': 320}
    """
    _check_arguments(density, allocation, scores, loss)
    chosen = _choose_layers(model, layers, exclude)
    shapes = [_weight(layer).shape for _, layer in chosen]
    keep = round(density * sum(shape.numel() for shape in shapes))
    if keep < len(chosen):
        raise ValueError(f"`density={density}` keeps {keep} weights of {len(chosen)} layers; use a larger one.")
    counts = ALLOCATIONS[allocation](shapes, keep)
    values = _random(shapes, seed) if scores == "random" else _saliency(model, chosen, loss)
    for (_, layer), count, value in zip(chosen, counts, values, strict=True):
        if count == value.numel():
            continue
        [mask] = largest([value], [torch.ones_like(value, dtype=torch.bool)], count)
        note_shape(layer, "weight")
        set_mask(layer, "weight", mask.to(_weight(layer).device))
        if rescale:
            with torch.no_grad():
                _weight(layer).mul_((value.numel() / count) ** 0.5 if count else 0.0)
    return {name: count for (name, _), count in zip(chosen, counts, strict=True)}


def _check_arguments(density: float, allocation: str, scores: str, loss: Any) -> None:
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0 < density < 1:
        raise ValueError(f"`density` is a share of the weights, between 0 and 1; found {density!r}.")
    for name, value, known in (("allocation", allocation, tuple(ALLOCATIONS)), ("scores", scores, SCORES)):
        if value not in known:
            raise ValueError(f"`{name}` is one of {', '.join(map(repr, known))}; found {value!r}.")
    if scores == "gradient" and not callable(loss):
        raise ValueError(
            '`scores="gradient"` needs a `loss`, a function of the model: `lambda model: cross_entropy(model(x), y)`.'
        )
    if scores == "random" and loss is not None:
        raise ValueError('`loss` is for `scores="gradient"`; with random scores leave it out.')


def _choose_layers(
    model: nn.Module, layers: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> list[Layer]:
    """Linear layers and convolutions with a weight of their own, in the order of the model."""
    wanted = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    unwanted = [exclude] if isinstance(exclude, str) else list(exclude or ())
    check_layers(model, [*(wanted or ()), *unwanted])
    owners: dict[int, int] = {}
    for parameter in (p for module in model.modules() for p in module._parameters.values() if p is not None):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = []
    for name, module in model.named_modules():
        if not _matches(name, wanted) or (unwanted and _matches(name, unwanted)):
            continue
        weight = module._parameters.get("weight")
        if weight is None or not is_linear(module) or not weight.requires_grad or owners[id(weight)] > 1:
            continue
        if mask_of(module) is not None or layout_of(module).packs:
            raise ValueError(f"`{name}` is sparse already; leave it out with `exclude`.")
        found.append((name, module))
    if not found:
        raise ValueError(
            "No layer is left to sparsify: no linear layer or convolution with a trained weight of its own."
        )
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution; the ``Conv1D`` of transformers is one.

    Example:
        >>> is_linear(nn.Linear(2, 1)), is_linear(nn.Embedding(2, 1))
        (True, False)
    """
    return isinstance(module, (nn.Linear, _ConvNd)) or any(c.__name__ == "Conv1D" for c in type(module).__mro__)


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _weight(layer: nn.Module) -> nn.Parameter:
    return layer.get_parameter("weight")


def _random(shapes: Sequence[torch.Size], seed: int) -> list[Tensor]:
    # One generator for all: drawn on the CPU, so that masks do not depend on the device.
    generator = Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _saliency(model: nn.Module, chosen: Sequence[Layer], loss: Any) -> list[Tensor]:
    """``|weight * gradient|`` of each weight; gradients that the model holds are not touched."""
    weights = [_weight(layer) for _, layer in chosen]
    with torch.enable_grad():
        value = loss(model)
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
    found = []
    for (name, _), weight, gradient in zip(chosen, weights, gradients, strict=True):
        if gradient is None or not bool(gradient.isfinite().all()):
            what = "does not depend on it" if gradient is None else "has a gradient there that is not finite"
            raise ValueError(f"`{name}` has no score: the loss {what}; leave it out with `exclude`.")
        found.append((weight.detach() * gradient).abs())
    return found
