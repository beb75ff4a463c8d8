"""The weights of a model that can be rewired, and why others cannot."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from fpe_lightning.expansion.optimizer_parts import as_optimizers
from fpe_lightning.sparse.guard import hooks_of, mask_name
from fpe_lightning.sparse.layout import layout_of
from fpe_lightning.sparse.masked import mask_of
from fpe_lightning.sparse.moves import Moves


@dataclass(frozen=True)
class Weight:
    """A masked parameter.

    Attributes:
        layer: Qualified name of the module that owns it.
        key: Its name within the module.
        module: The module.
        tied: Other modules that own the same parameter, each with its name there.
    """

    layer: str
    key: str
    module: nn.Module
    tied: tuple[tuple[nn.Module, str], ...] = ()

    @property
    def name(self) -> str:
        """Qualified name of the parameter.

        Example:
            >>> Weight("net.0", "weight", nn.Linear(2, 1)).name
            'net.0.weight'
        """
        return f"{self.layer}.{self.key}".lstrip(".")

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, as it is stored."""
        return self.module.get_parameter(self.key)

    @property
    def moves(self) -> Moves:
        """How its layout moves single weights."""
        moves = layout_of(self.module).moves
        assert moves is not None
        return moves

    @property
    def held(self) -> Tensor:
        """The places that hold a weight, bool of the stored shape."""
        return self.moves.held(self.module, self.key)

    @property
    def owner(self) -> tuple[nn.Module, str]:
        """The module whose gradient hook is the first, and the name there; later hooks see masked gradients."""
        hooks = [(hook.module(), hook.name) for hook in hooks_of(self.parameter)]
        first = next(((module, name) for module, name in hooks if module is not None), None)
        return first or (self.module, self.key)


def movable_weights(
    model: nn.Module, layers: str | Sequence[str] | None = None, optimizer: Any = None, *, dense: bool = False
) -> tuple[list[Weight], dict[str, str]]:
    """The weights of a model that can be rewired.

    Args:
        model: Any module.
        layers: Names or globs of layers; None for all.
        optimizer: One or several optimizers: a weight that none of them holds is not trained. None leaves it to
            ``requires_grad``.
        dense: Whether layers without a mask count: those that ``layers`` names, or the classifier where it is None.

    Returns:
        The weights in the order of the model, and a reason for each masked weight that is left out, by its name.

    Raises:
        ValueError: If a name matches no layer, or a layer that was asked for by its name cannot be rewired.

    Example:
        >>> import fpe_lightning as fpe
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> _ = fpe.sparsify(model, density=0.5)
        >>> [weight.name for weight in movable_weights(model)[0]]
        ['0.weight', '2.weight']
    """
    patterns = None if layers is None else [layers] if isinstance(layers, str) else list(layers)
    check_layers(model, patterns)
    held = {id(p) for each in as_optimizers(optimizer) for group in each.param_groups for p in group["params"]}
    last = classifier_of(model) if dense and patterns is None else None
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, key))
    found: list[Weight] = []
    refused: dict[str, str] = {}
    for layer, module, key in _masked(model, patterns if dense else None, last):
        if patterns is not None and not any(fnmatchcase(layer, pattern) for pattern in patterns):
            continue
        each = Weight(layer, key, module)
        reason = _cannot_move(each, held)
        if reason is None:
            tied = owners[id(each.parameter)]
            if tied[0][0] is module and tied[0][1] == key:  # a tied weight counts once
                found.append(Weight(layer, key, module, tuple(tied[1:])))
        elif patterns is not None and layer in patterns:
            raise ValueError(f"`{each.name}` cannot be rewired: {reason}. Leave it out of `layers`.")
        else:
            refused[each.name] = reason
    return found, refused


def is_dense(weight: Weight) -> bool:
    """Whether a weight has no mask yet: it can give entries to other layers, and gets a mask when it does.

    Example:
        >>> is_dense(Weight("0", "weight", nn.Linear(2, 1)))
        True
    """
    return mask_of(weight.module, weight.key) is None and not layout_of(weight.module).packs


def check_layers(model: nn.Module, patterns: Iterable[str] | None) -> None:
    """Refuse a name or glob that matches no layer with parameters of its own.

    Raises:
        ValueError: With the pattern and the nearest names.

    Example:
        >>> check_layers(nn.Sequential(nn.Linear(4, 2)), ["0"])
    """
    names = [name for name, module in model.named_modules() if any(p is not None for p in module._parameters.values())]
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The model has {', '.join(map(repr, names[:12]))}."
            raise ValueError(f"`layers` names {pattern!r}, and the model has no such layer with weights. {hint}")


def classifier_of(model: nn.Module) -> str | None:
    """Name of the last linear layer of a model in its order, if its weight is its own; None where there is none.

    Example:
        >>> classifier_of(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 1)))
        '2'
    """
    linear = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    if not linear:
        return None
    name, last = linear[-1]
    times = sum(p is last.weight for m in model.modules() for p in m._parameters.values())
    return name if times == 1 else None


def _masked(model: nn.Module, patterns: Sequence[str] | None, last: str | None) -> Iterator[tuple[str, nn.Module, str]]:
    """Every masked parameter, and dense weights that may get a mask: names of layer, module and parameter."""
    for layer, module in model.named_modules():
        wanted = layer == last or any(fnmatchcase(layer, pattern) for pattern in patterns or ())
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.dim() < 2:
                continue
            stored = key == "weight" and layout_of(module).packs
            if stored or mask_of(module, key) is not None or (wanted and key == "weight"):
                yield layer, module, key
        for name in module._buffers:
            key = name.removeprefix(mask_name(""))
            if key != name and key not in module._parameters:
                yield layer, module, key


def _cannot_move(weight: Weight, trained: set[int]) -> str | None:
    """Why a weight cannot be rewired, in a few words; None where it can."""
    parameter = weight.module._parameters.get(weight.key)
    if parameter is None:
        return "it is computed from other parameters, such as those of weight norm"
    layout = layout_of(weight.module)
    if layout.moves is None or (weight.key != "weight" and layout.packs):
        return f'it is stored {layout.phrase}, where single weights cannot move; `layout="masked"` lets them'
    if hasattr(parameter, "full_tensor"):
        return "it is sharded, and a move needs the whole weight"
    if not parameter.requires_grad or (trained and id(parameter) not in trained):
        return "nothing trains it"
    return None
