"""Both packages of Lightning: ``lightning.pytorch``, and ``pytorch_lightning``, which has classes of its own.

Many projects import ``pytorch_lightning``. A Trainer of either package takes the callbacks of this one, so that checks
of classes have to know those of both. A package that nobody has imported stays out.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities import exceptions
from typing_extensions import Self


def loaded(module: str, *names: str) -> tuple[type, ...]:
    """The classes of a module, from each package of Lightning that is in use.

    Args:
        module: The module within ``lightning.pytorch``, such as ``"strategies"``.
        names: Names of classes in it.

    Example:
        >>> from lightning.pytorch.strategies import DDPStrategy
        >>> issubclass(DDPStrategy, loaded("strategies", "DDPStrategy"))
        True
    """
    packages = [name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules]
    modules = [importlib.import_module(f"{package}.{module}") for package in packages]
    return tuple(getattr(each, name) for each in modules for name in names)


def instances(values: Iterable[Any], module: str, *names: str) -> list[Any]:
    """Those of some objects whose class is one of :func:`loaded`.

    Example:
        >>> instances([pl.Callback(), 1], "callbacks", "ModelCheckpoint")
        []
    """
    kinds = loaded(module, *names)
    return [value for value in values if isinstance(value, kinds)]


class Callback(pl.Callback):
    """A callback that Trainers of both packages know as one of theirs.

    Example:
        >>> isinstance(Callback(), pl.Callback)
        True
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Become a callback of the other package too, as soon as that is in use."""
        _adopt(Callback, sys.modules.get("pytorch_lightning"), "Callback")
        return super().__new__(cls)


class MisconfigurationException(exceptions.MisconfigurationException):
    """The error that both packages raise for a wrong set-up, so that code that catches either catches this one.

    Example:
        >>> isinstance(MisconfigurationException(), exceptions.MisconfigurationException)
        True
    """

    def __new__(cls, *arguments: Any) -> Any:
        """Become an exception of the other package too, as soon as that is in use."""
        _adopt(cls, sys.modules.get("lightning_fabric.utilities.exceptions"), "MisconfigurationException")
        return super().__new__(cls, *arguments)


def _adopt(kind: type, module: Any, name: str) -> None:
    """Add a class of a module to the bases of a class, unless it is there or the module is not loaded."""
    other = getattr(module, name, None)
    if other is not None and not issubclass(kind, other):
        kind.__bases__ = (*kind.__bases__, other)
