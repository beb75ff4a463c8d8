"""Linear layers whose weight has its inputs first: the ``Conv1D`` of transformers, as in GPT-2.

The class is known by its name, so that nothing imports transformers. Layers of a layout are made from it when they are
needed, and are copied and pickled by way of the plain class.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from fpe_lightning.sparse.masked import masked_class


def has_inputs_first(kind: type[nn.Module]) -> bool:
    """Whether a class is the ``Conv1D`` of transformers, whose weight is ``(inputs, neurons)``.

    Example:
        >>> has_inputs_first(nn.Linear)
        False
    """
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class MadeModule(nn.Module):
    """Mixin of a layer of a layout whose class is made at run time, and so cannot be imported by its name."""

    fpe_plain: ClassVar[type[nn.Module]]
    fpe_recipe: ClassVar[tuple[Any, tuple[type[nn.Module], type[nn.Module], bool]]]

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return _new, self.fpe_recipe[1], self.__dict__


_MADE: dict[tuple[type[nn.Module], type[nn.Module], bool], type[nn.Module]] = {}


def made_class(mixin: type[nn.Module], plain: type[nn.Module], masked: bool = False) -> type[nn.Module]:
    """The class of a layer that computes as a mixin says, and is one of a plain class otherwise.

    Args:
        mixin: Its name ends in ``Transposed``, which the name of the plain class replaces.
        plain: The class that the layer had before a split.
        masked: Whether the layer has a mask too.

    Example:
        >>> class LoudTransposed(nn.Module): ...
        >>> made_class(LoudTransposed, nn.Identity).__name__
        'LoudIdentity'
    """
    key = (mixin, plain, masked)
    if key not in _MADE:
        name = f"{mixin.__name__.removesuffix('Transposed')}{plain.__name__}"
        members = {"__module__": plain.__module__, "fpe_plain": plain, "fpe_recipe": (made_class, key)}
        _MADE[key] = type(name, (MadeModule, mixin, masked_class(plain) if masked else plain), members)
    return _MADE[key]


def _new(mixin: type[nn.Module], plain: type[nn.Module], masked: bool) -> nn.Module:
    cls = made_class(mixin, plain, masked)
    return cls.__new__(cls)
