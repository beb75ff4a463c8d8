"""The registry of traced operators: which rule says how an operator moves labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fpe_lightning.registry import Registry
from fpe_lightning.sites.tracing.call import Call

Rule = Callable[[Call], None]
RULES: Registry[Rule] = Registry("traced operator")
OURS = ("aten", "prim", "prims", "torchvision")
"""Namespaces whose operators go by their bare names."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of some operators.

    Args:
        names: Operators of ATen by their bare names (``"relu"``), all others with their namespace
            (``"my_library::swish"``). Overloads and in-place forms share a name.

    Raises:
        ValueError: If a name is taken.

    Example:
        >>> @rule("my_library::swish")
        ... def swish(call: Call) -> None:
        ...     call.emit(call.labels(call.input))  # entries stay where they are
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES.register(name, function)
        return function

    return register


def register_operator(name: str, like: str | Rule) -> None:
    """Teach the tracer an operator, so that widths on both sides of it are found.

    Args:
        name: As for :func:`rule`.
        like: An operator that treats entries in the same way and has arguments of the same names, such as
            ``"pointwise"`` (entry by entry), ``"softmax"`` (takes ``dim``) or ``"linear"`` (takes ``weight`` and
            ``bias``); or a rule, see :func:`rule`.

    Raises:
        ValueError: If the name is taken, or no operator of the other name is known.

    Example:
        >>> register_operator("my_library::scaled_tanh", like="pointwise")
        >>> register_operator("my_library::scaled_tanh", like="pointwise")
        Traceback (most recent call last):
        ...
        ValueError: The traced operator 'my_library::scaled_tanh' is registered already; choose another name.
    """
    if not isinstance(like, str):
        RULES.register(name, like)
        return
    known = RULES.get(like)
    # Some rules serve several operators and tell them apart by name.
    RULES.register(name, lambda call: known(dataclasses.replace(call, name=like)))


@functools.cache
def name_of(operator: Any) -> str:
    """The name that an operator is registered under.

    Example:
        >>> name_of(torch.ops.aten.relu_.default)
        'relu'
    """
    namespace, name = operator._schema.name.split("::")
    if operator._schema.is_mutable and name.endswith("_"):
        name = name[:-1]
    return name if namespace in OURS else f"{namespace}::{name}"


class Signature(NamedTuple):
    """The schema of an operator, read once: asking torch for it takes longer than to use it.

    Attributes:
        arguments: Names and defaults of its arguments, in their order.
        mutable: Whether it writes into an argument.
    """

    arguments: tuple[tuple[str, Any], ...]
    mutable: bool

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call by their names."""
        bound = {name: kwargs.get(name, default) for name, default in self.arguments[len(args) :]}
        return dict(zip((name for name, _ in self.arguments), args, strict=False)) | bound


@functools.cache
def signature_of(operator: Any) -> Signature:
    """The arguments of an operator.

    Example:
        >>> signature_of(torch.ops.aten.mul_.Tensor)
        Signature(arguments=(('self', None), ('other', None)), mutable=True)
    """
    schema = operator._schema
    arguments = ((each.name, each.default_value if each.has_default_value() else None) for each in schema.arguments)
    return Signature(tuple(arguments), bool(schema.is_mutable))


def rule_of(operator: Any) -> Rule:
    """The rule of an operator; one that refuses whatever enters an operator that nobody registered.

    Example:
        >>> rule_of(torch.ops.aten.tanh.default).__name__
        'pointwise'
    """
    name = name_of(operator)
    if name in RULES:
        return RULES.get(name)
    return RULES.get("pointwise" if torch.Tag.pointwise in operator.tags else "unknown")


@rule("unknown")
def unknown(call: Call) -> None:
    """Refuse whatever enters an operator that no rule knows."""
    for tensor in call.tensors:
        call.freeze(call.labels(tensor), f"unknown operator {call.name}")
    call.emit(())
