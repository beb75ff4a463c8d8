"""Refuse models whose parameters another object holds too: it would keep the old ones after a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.convert import is_sharded

WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Classes that hold the parameters of the model that they wrap; by name, as some need packages of their own."""


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a model that was wrapped for several processes.

    The wrapper reduces the gradients of the parameters that it was made with: after a split, processes would drift
    apart in silence.

    Raises:
        ValueError: Naming the wrapper and what to do.

    Example:
        >>> check_unwrapped(nn.Linear(2, 2))
    """
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
        if kinds:
            raise ValueError(
                f"`{name or 'model'}` is wrapped in {kinds[0]}, which would keep the parameters from before the "
                "split; split the module inside of it, and wrap that again."
            )


def check_whole(model: nn.Module, sites: Iterable[Site]) -> None:
    """Refuse sites with parameters of which each process holds a shard.

    Raises:
        ValueError: Naming the first such parameter and what to do.

    Example:
        >>> check_whole(nn.Linear(2, 2), [])
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for site in sites:
        for axis in site.axes():
            if axis.parameter in parameters and is_sharded(parameters[axis.parameter]):
                raise ValueError(
                    f"`{axis.parameter}` is sharded, and FSDP2 would put it back after a split of {site.name}; split "
                    "inside of `whole_parameters` of `fpe_lightning.callbacks.fsdp2.exchange`, by an ExpansionCallback "
                    "under `ExpandableModelParallelStrategy`, or widen a checkpoint with "
                    "`fpe_lightning.expand_checkpoint`."
                )


def groups_of(module: nn.Module) -> Sequence[Any]:
    """The groups of parameters that FSDP2 manages for one module; none for a module it does not know.

    Example:
        >>> groups_of(nn.Linear(4, 2))
        ()
    """
    state = getattr(module, "_get_fsdp_state", None)
    return () if state is None else state()._fsdp_param_groups


def read_by_parent(model: nn.Module, owner: str) -> str | None:
    """Why the weight of a submodule has to stay dense, in a few words: its parent reads it. None where it need not.

    Torch's own encoder layer gives the weights of its children to a fused kernel when it evaluates.
    """
    parent = model.get_submodule(owner.rpartition(".")[0]) if owner else None
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads the weight without calling the layer that owns it"
    return None
