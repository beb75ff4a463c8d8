"""Which sharded models can change under FSDP2: tested ones pass, all others are refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.expansion.checks import groups_of

TESTED = ("2.14", "2.15")
"""Versions of torch whose FSDP2 was tested."""


def check_version() -> None:
    """Refuse a version of torch whose FSDP2 was not tested.

    Raises:
        ValueError: Naming it and those that were.

    Example:
        >>> check_version() if torch.__version__.startswith(TESTED) else None
    """
    if ".".join(torch.__version__.split(".")[:2]) not in TESTED:
        raise ValueError(
            f"Splitting under FSDP2 uses internals of torch and was tested with torch {', '.join(TESTED)}; found "
            f"{torch.__version__}. Widen the checkpoint with `fpe_lightning.expand_checkpoint` instead."
        )


def check_sharding(model: nn.Module) -> None:
    """Refuse a model, or a version of torch, that parameters were never exchanged with.

    Raises:
        ValueError: Naming what was found and what to do.

    Example:
        >>> check_sharding(nn.Linear(4, 2))
        Traceback (most recent call last):
        ...
        ValueError: No parameter of Linear is sharded by FSDP2; call `fully_shard` on it, or use DDP.
    """
    # FSDP2 leaves nothing in public: each check looks at what an exchange would have to rebuild.
    groups = list(groups_by_parameter(model).values())
    if not groups:
        raise ValueError(
            f"No parameter of {type(model).__name__} is sharded by FSDP2; call `fully_shard` on it, or use DDP."
        )
    check_version()
    for name, module in model.named_modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or getattr(module, "_compiled_call_impl", None):
            raise ValueError(
                f"`{name or type(module).__name__}` is compiled, which was not tested under FSDP2; leave it uncompiled."
            )
    for parameter in (parameter for group in groups for parameter in group.fsdp_params):
        name = f"{type(parameter._module_info.module).__name__}.{parameter._module_info.param_name}"
        if parameter.offload_to_cpu:
            raise ValueError(f"`{name}` is offloaded to the CPU, which was not tested; leave `offload_policy` out.")
        if parameter.is_dtensor:
            raise ValueError(f"`{name}` is split by tensor parallelism too; splits need `tensor_parallel_size=1`.")


def check_parameter(name: str, parameter: nn.Parameter, group: Any, optimizers: Sequence[Optimizer]) -> None:
    """Refuse a sharded parameter that cannot be exchanged without a loss.

    Args:
        name: Its qualified name, for the messages.
        parameter: The parameter.
        group: The group of FSDP2 that manages it, or None.
        optimizers: The optimizers that may hold it.

    Raises:
        ValueError: Naming what was found and what to do.

    Example:
        >>> check_parameter("weight", nn.Parameter(torch.zeros(1)), None, [])
        Traceback (most recent call last):
        ...
        ValueError: `weight` is not sharded by FSDP2, while others are; call `fully_shard` on the root module too.
    """
    if group is None:
        raise ValueError(
            f"`{name}` is not sharded by FSDP2, while others are; call `fully_shard` on the root module too."
        )
    managed = group.fsdp_params[index_in(group, parameter)]
    if managed._module_info.shared_modules:
        raise ValueError(
            f"`{name}` is shared by several modules, and cannot be exchanged under FSDP2; leave its site out."
        )
    if managed.fsdp_placement.dim != 0:
        raise ValueError(
            f"`{name}` is sharded along axis {managed.fsdp_placement.dim}, and only axis 0 was tested; leave "
            "`shard_placement_fn` out."
        )
    if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
        raise ValueError(f"`{name}` has gradient hooks, which a sharded parameter would lose; remove them first.")
    # State moves with its parameter, entry by entry: whatever is not shaped like it has no place to go.
    holders = [o for o in optimizers if any(p is parameter for group in o.param_groups for p in group["params"])]
    if len(holders) > 1:
        raise ValueError(f"`{name}` is held by {len(holders)} optimizers, which was not tested under FSDP2; use one.")
    for optimizer in holders:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__} state `{key}` of `{name}` has shape {tuple(value.shape)}; under FSDP2 "
                    "state has to have the parameter's shape, as that of SGD or AdamW has."
                )
            if not isinstance(value, (Tensor, int, float, bool, type(None))):
                raise ValueError(
                    f"{type(optimizer).__name__} state `{key}` of `{name}` is a {type(value).__name__}; under FSDP2 "
                    "only tensors and numbers follow."
                )


def groups_by_parameter(model: nn.Module) -> dict[int, Any]:
    """The group that manages each sharded parameter, by the parameter's id."""
    return {
        id(parameter.sharded_param): group
        for module in model.modules()
        for group in groups_of(module)
        for parameter in group.fsdp_params
    }


def index_in(group: Any, parameter: nn.Parameter) -> int:
    """The place of a sharded parameter in the group that manages it."""
    return next(i for i, each in enumerate(group.fsdp_params) if each.sharded_param is parameter)
