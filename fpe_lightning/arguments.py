"""Checks of arguments that several rooms take: models, names of sites, numbers, samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

MOST_BYTES = 4_000_000_000
"""No more memory is taken for one number of each class and sample."""


def check_module(model: Any, name: str = "model") -> None:
    """Refuse what is no model.

    Raises:
        TypeError: If it is not.

    Example:
        >>> check_module(nn.Linear)
        Traceback (most recent call last):
        ...
        TypeError: `model` is a torch.nn.Module, found the class Linear: make an instance of it.
    """
    if isinstance(model, type):
        raise TypeError(f"`{name}` is a torch.nn.Module, found the class {model.__name__}: make an instance of it.")
    if not isinstance(model, nn.Module):
        hint = ": load it into a model first" if isinstance(model, Mapping) else ""
        raise TypeError(f"`{name}` is a torch.nn.Module, found {_kind(model)}{hint}.")


def check_state_dict(state_dict: Any) -> None:
    """Refuse what is no ``state_dict``.

    Raises:
        TypeError: If it is not.

    Example:
        >>> check_state_dict("best.ckpt")
        Traceback (most recent call last):
        ...
        TypeError: `state_dict` maps names to tensors, found a str: read a file by `fpe.restore_structure_from_file`.
    """
    if not isinstance(state_dict, Mapping):
        hint = ": read a file by `fpe.restore_structure_from_file`" if isinstance(state_dict, str) else ""
        raise TypeError(f"`state_dict` maps names to tensors, found {_kind(state_dict)}{hint}.")


def check_strings(argument: str, given: Any, what: str = "names or globs of sites") -> None:
    """Refuse what is neither None, a string nor several strings.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_strings("sites", 3)
        Traceback (most recent call last):
        ...
        ValueError: `sites` takes names or globs of sites, a string or a list of them; found 3.
    """
    several = isinstance(given, Iterable) and all(isinstance(each, str) for each in given)
    if given is not None and not several:
        raise ValueError(f"`{argument}` takes {what}, a string or a list of them; found {given!r}.")


def check_integers(values: Mapping[str, Any], least: int = 1) -> None:
    """Refuse sizes that are no integers, or too small.

    Raises:
        ValueError: Naming the first.

    Example:
        >>> check_integers({"hidden": "8"})
        Traceback (most recent call last):
        ...
        ValueError: `hidden` takes integers of at least 1, found '8'.
    """
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        if not all(type(each) is int and each >= least for each in several):
            raise ValueError(f"`{name}` takes integers of at least {least}, found {value!r}.")


def check_number(name: str, value: Any, least: float = 0.0) -> None:
    """Refuse what is no finite number of at least ``least``.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_number("min_delta", float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: `min_delta` is a number of at least 0, found nan.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        raise ValueError(f"`{name}` is a number of at least {least:g}, found {value!r}.")


def check_samples(x: Any, y: Any) -> None:
    """Refuse samples that no rule can be fitted to.

    Args:
        x: ``(n, inputs)``, finite and of floating point.
        y: ``(n,)`` bool or integer class numbers.

    Raises:
        ValueError: If a shape, a dtype or a value is another.

    Example:
        >>> import torch
        >>> check_samples(torch.zeros(64, 8), torch.full((64,), 10**9))
        Traceback (most recent call last):
        ...
        ValueError: Class numbers go up to 1000000000 in 64 samples: number the classes from 0, without gaps.
    """
    for name, tensor in (("x", x), ("y", y)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"Samples are a pair of tensors (x, y); `{name}` is {_kind(tensor)}.")
    if x.dim() != 2 or not len(x) or not x.is_floating_point():
        raise ValueError(f"Samples are floating-point numbers (n, inputs), found {x.dtype} {tuple(x.shape)}.")
    if y.dim() != 1 or y.is_floating_point() or y.is_complex() or len(x) != len(y):
        raise ValueError(
            f"`targets` are class numbers, bool or integer, one for each of the {len(x)} samples; found {y.dtype} "
            f"{tuple(y.shape)}."
        )
    if not bool(x.isfinite().all()):
        raise ValueError("Some sample holds NaN or infinity; leave it out.")
    if int(y.min()) < 0:
        raise ValueError(f"Class numbers begin at 0, found {int(y.min())}.")
    if (int(y.max()) + 1) * len(y) * 8 > MOST_BYTES:
        raise ValueError(
            f"Class numbers go up to {int(y.max())} in {len(y)} samples: number the classes from 0, without gaps."
        )


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
