"""Hold sharded parameters whole for the time of a change, and shard them again afterwards.

FSDP2 keeps its own reference to every sharded parameter, so that a parameter that is merely replaced in its module
would silently come back. Torch has no public way to exchange one. The single private piece that is used here, the
constructor of ``FSDPParam``, is why only versions of torch that were tested are let in, and why every exchange is
checked. Sharding plan, mixed precision, prefetching, optimizer and scheduler objects all stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fpe_lightning.callbacks.fsdp2.checks import (
    check_parameter,
    check_sharding,
    groups_by_parameter,
    index_in,
)
from fpe_lightning.expansion.checks import groups_of
from fpe_lightning.sparse.exchange import exchange_parameters


@dataclass
class _Held:
    """One sharded parameter that is whole for now."""

    name: str
    module: nn.Module
    key: str
    group: Any
    sharded: nn.Parameter
    whole: nn.Parameter
    states: list[tuple[Optimizer, dict[str, Any]]]
    version: int

    @property
    def now(self) -> nn.Parameter:
        """The parameter that the module holds now: the whole one, or its replacement."""
        return self.module.get_parameter(self.key)

    @property
    def untouched(self) -> bool:
        """Whether it is unchanged."""
        same = self.now is self.whole and self.whole.shape == self.sharded.shape  # a load changes shapes in place
        return same and self.whole._version == self.version


@contextmanager
def whole_parameters(
    model: nn.Module, names: Iterable[str], optimizers: Sequence[Optimizer] = ()
) -> Iterator[list[nn.Parameter]]:
    """Hold some parameters of a model whole on every process, with their gradients and optimizer state.

    Code inside may replace them by parameters of other shapes, as ``expand`` does. Afterwards a replaced parameter is
    sharded again, and any other is the same object as before. If the code raises, all parameters and their states are
    as they were. Every process has to do the same.

    Args:
        model: A model whose parameters were sharded by ``torch.distributed.fsdp.fully_shard``.
        names: Qualified names of parameters; buffers among them are whole already and passed over.
        optimizers: The optimizers that may hold them.

    Yields:
        The whole parameters.

    Raises:
        ValueError: If a parameter is sharded, shared, hooked or optimized in a way that cannot be exchanged; nothing is
            changed then.
        RuntimeError: If torch does not hold a new parameter afterwards as it should.

    Example:
        >>> with whole_parameters(nn.Linear(4, 2), []):
        ...     pass
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = [name for name in dict.fromkeys(names) if name in parameters]
    if wanted:
        # All checks come before the first parameter is touched, on every process alike.
        check_sharding(model)
        groups = groups_by_parameter(model)
        reshard(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in wanted:
            check_parameter(name, parameters[name], groups.get(id(parameters[name])), optimizers)
    held = [_hold(model, name, groups[id(parameters[name])], optimizers) for name in wanted]
    try:
        yield [each.whole for each in held]
    except BaseException:
        for each in held:
            _put_back(each, optimizers)
        raise
    for each in held:
        if each.untouched:
            _put_back(each, optimizers)
        else:
            _shard(each, optimizers)


def reshard(model: nn.Module) -> None:
    """Let every module hold its shards again, where an evaluation left it whole.

    Raises:
        ValueError: In the middle of a forward or backward pass, or of accumulating gradients that are not yet reduced.
    """
    for module in model.modules():
        for group in groups_of(module):
            if group._training_state.name != "IDLE":
                raise ValueError("A split inside of a forward or backward pass is not possible; split between batches.")
            if group._partial_reduce_output is not None or any(
                getattr(getattr(parameter, "_unsharded_param", None), "grad", None) is not None
                for parameter in group.fsdp_params
            ):
                raise ValueError(
                    "Gradients wait for their reduction (`set_requires_gradient_sync(False)`) and would be lost; split "
                    "after the optimizer step."
                )
            group.reshard()


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _hold(model: nn.Module, name: str, group: Any, optimizers: Sequence[Optimizer]) -> _Held:
    """Put a parameter's full values into its module and its optimizers."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    sharded = module.get_parameter(key)
    # Not `unshard()`, whose values have the precision that is computed in.
    whole = nn.Parameter(_whole(sharded.detach()), requires_grad=sharded.requires_grad)
    if sharded.grad is not None:
        whole.grad = _whole(sharded.grad)
    states = [(optimizer, optimizer.state[sharded]) for optimizer in optimizers if sharded in optimizer.state]
    module._parameters[key] = whole
    exchange_parameters(
        optimizers,
        {sharded: whole},
        [(o, sharded, {entry: _whole(value) for entry, value in state.items()}) for o, state in states],
    )
    return _Held(name, module, key, group, sharded, whole, states, whole._version)


def _put_back(held: _Held, optimizers: Sequence[Optimizer]) -> None:
    """Undo :func:`_hold`."""
    now = held.now
    held.module._parameters[held.key] = held.sharded
    states = [(optimizer, held.whole, state) for optimizer, state in held.states]
    exchange_parameters(optimizers, {held.whole: held.sharded, now: held.sharded}, states)


def _shard(held: _Held, optimizers: Sequence[Optimizer]) -> None:
    """Give the parameter that has taken the place of a sharded one to the group that managed it, in shards."""
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
    from torch.distributed.tensor import distribute_tensor

    new, group = held.now, held.group
    # A new manager of the same kind in the same place, so that the order of communication stays.
    index = index_in(group, held.sharded)
    old = group.fsdp_params[index]
    value, grad = new.detach().clone(), new.grad
    managed: Any = FSDPParam(
        nn.Parameter(value.contiguous(), requires_grad=new.requires_grad),
        old._module_info,
        old.mesh_info,
        old.post_forward_mesh_info,
        old.device,
        None,
        old.mp_policy,
        group.offload_policy,
    )
    # Its hook would shard the old parameter again at the next load.
    old._post_load_hook_handle.remove()
    managed._param_fqn = old._param_fqn
    if hasattr(old, "keep_unsharded_storage"):  # torch 2.15 and newer
        managed.keep_unsharded_storage = old.keep_unsharded_storage
    group.fsdp_params[index] = managed
    if group._reset_sharded_params:  # its forward has run before
        group.lazy_init()
    sharded: Any = managed.sharded_param
    mesh, placements = sharded.device_mesh, sharded.placements

    def shards(tensor: Any) -> Any:
        # Every process has the whole tensor already, so nothing is sent.
        if not isinstance(tensor, Tensor) or tensor.shape != value.shape or tensor.dim() == 0:
            return tensor
        return distribute_tensor(tensor.contiguous(), mesh, placements, src_data_rank=None)

    if grad is not None:
        sharded.grad = shards(grad)
    states = [(each, new, each.state[new]) for each in optimizers if new in each.state]
    exchange_parameters(
        optimizers,
        {new: sharded, held.whole: sharded},
        [(each, new, {entry: shards(tensor) for entry, tensor in state.items()}) for each, _, state in states],
    )
    # Torch promises none of this: look, before a step trains something else.
    if held.now is not sharded or not torch.equal(_whole(sharded.detach()), value):
        raise RuntimeError(f"FSDP2 does not hold `{held.name}` as it was split; this version of torch does not work.")
