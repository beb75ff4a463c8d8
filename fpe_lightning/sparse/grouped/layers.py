"""Layers that store and compute the non-zeros of a block structure alone: ``layout="grouped"``.

Parameter, gradient and optimizer state have the size of the non-zeros. The structure is the buffer ``weight_inputs``
(see :mod:`fpe_lightning.sparse.grouped.blocks`), the parameter ``weight`` is packed. Single weights that are zero
inside of a block have a mask of the packed shape, as in any masked layer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.grouped.blocks import block_rows, unpack
from fpe_lightning.sparse.grouped.plan import Plan, make_plan
from fpe_lightning.sparse.grouped.products import block_linear
from fpe_lightning.sparse.masked import MaskedConv1d, MaskedConv2d, MaskedConv3d, MaskedLinear, mask_of, set_mask
from fpe_lightning.sparse.prepared import PreparedModule

STRUCTURE = "weight_inputs"
"""Name of the buffer that holds the structure."""
CACHED = ("plan", "gather", "calls")
"""Names of what is worked out from it."""


class GroupedModule(PreparedModule):
    """What grouped layers have in common; made by :func:`~fpe_lightning.sparse.convert.set_structure`."""

    weight_inputs: Tensor

    @property
    def dense_shape(self) -> torch.Size:
        """The shape of the weight that the packed one stands for."""
        raise NotImplementedError

    @override
    def prepare(self) -> None:
        if not self.weight_inputs.is_meta:
            self.make_plan()

    def make_plan(self) -> None:
        """Work out how to compute with the structure that the buffer holds now."""
        raise NotImplementedError

    def dense_weight(self) -> Tensor:
        """The weight as a masked layer would hold it; differentiable."""
        return unpack(self.get_parameter("weight"), self.weight_inputs, self.dense_shape)

    def as_leaf(self, input: torch.fx.Proxy) -> Any:
        """One node of a graph that torch.fx traces, as the plain layer is one: what it computes by follows its buffers.

        A call of operators in its place would have to hold the plan, which moves and loads could not reach.
        """
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocks={len(self.weight_inputs)}"


class GroupedLinear(GroupedModule, nn.Linear):
    """An ``nn.Linear`` made of dense blocks, computed by products on slices."""

    plan: Plan

    @property
    @override
    def dense_shape(self) -> torch.Size:
        return torch.Size([self.out_features, self.in_features])

    @override
    def make_plan(self) -> None:
        self.plan = make_plan(self.weight_inputs, self.out_features)

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        return block_linear(input, self.weight, self.bias, self.plan)


class _GroupedConv(GroupedModule):
    """A convolution made of dense blocks of channels, computed by grouped convolutions."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    gather: Tensor | None
    calls: list[tuple[int, int, int, int]]
    """For each grouped convolution: blocks, first row, rows of a block, fan-in of a block."""

    @property
    @override
    def dense_shape(self) -> torch.Size:
        return torch.Size([self.out_channels, self.in_channels, *self.kernel_size])

    @override
    def make_plan(self) -> None:
        index = torch.cat([block.nonzero().squeeze(1) for block in self.weight_inputs])
        in_order = torch.arange(self.in_channels, device=index.device)
        self.gather = None if torch.equal(index, in_order) else index
        self.calls = []
        fan_in = self.weight_inputs.sum(1).tolist()
        for (row, rows), fan in zip(block_rows(self.out_channels, len(fan_in)), fan_in, strict=True):
            if self.calls and self.calls[-1][2:] == (rows, fan):
                self.calls[-1] = (self.calls[-1][0] + 1, *self.calls[-1][1:])
            else:
                self.calls.append((1, row, rows, fan))

    @override
    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return self.as_leaf(input)
        spatial = len(self.kernel_size)
        batch = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        module: Any = self
        padding = module.padding
        if module.padding_mode != "zeros":
            batch, padding = F.pad(batch, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
        source = batch if self.gather is None else batch.index_select(1, self.gather)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        outputs, offset, channel = [], 0, 0
        for blocks, row, rows, fan in self.calls:
            size = blocks * rows * fan * math.prod(self.kernel_size)
            weight = module.weight.narrow(0, offset, size).view(blocks * rows, fan, *self.kernel_size)
            bias = None if module.bias is None else module.bias.narrow(0, row, blocks * rows)
            read = source.narrow(1, channel, blocks * fan)
            outputs.append(convolve(read, weight, bias, module.stride, padding, module.dilation, blocks))
            offset += size
            channel += blocks * fan
        result = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return result if input.dim() == spatial + 2 else result.squeeze(0)


class GroupedConv1d(_GroupedConv, nn.Conv1d):
    """An ``nn.Conv1d`` made of dense blocks of channels."""


class GroupedConv2d(_GroupedConv, nn.Conv2d):
    """An ``nn.Conv2d`` made of dense blocks of channels."""


class GroupedConv3d(_GroupedConv, nn.Conv3d):
    """An ``nn.Conv3d`` made of dense blocks of channels."""


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    GroupedLinear: nn.Linear,
    GroupedConv1d: nn.Conv1d,
    GroupedConv2d: nn.Conv2d,
    GroupedConv3d: nn.Conv3d,
}
_GROUPED: dict[type[nn.Module], type[nn.Module]] = {
    **{plain: grouped for grouped, plain in _PLAIN.items()},
    MaskedLinear: GroupedLinear,
    MaskedConv1d: GroupedConv1d,
    MaskedConv2d: GroupedConv2d,
    MaskedConv3d: GroupedConv3d,
}


def cannot_group(module: nn.Module) -> str | None:
    """Why a module's weight cannot be stored in blocks, in a few words; None where it can.

    Example:
        >>> cannot_group(nn.Linear(4, 2)), cannot_group(nn.Bilinear(4, 4, 2))
        (None, 'there is no grouped form of Bilinear')
    """
    if isinstance(module, GroupedModule):
        return None
    if type(module) not in _GROUPED:
        return f"there is no grouped form of {type(module).__name__}"
    if getattr(module, "groups", 1) != 1:
        return f"the convolution already has {module.groups} groups"
    if module._parameters.get("weight") is None or mask_of(module, "bias") is not None:
        return "its weight is computed from other parameters, or its bias is masked"
    masks = [] if mask_of(module) is not None else [f"{name}_mask" for name in module._parameters]
    taken = [name for name in (STRUCTURE, *CACHED, *masks) if hasattr(module, name)]
    return f"it has a `{taken[0]}` of its own, under a name that blocks need" if taken else None


def plain_class(module: GroupedModule) -> type[nn.Module]:
    """The torch class that a grouped layer stands for, whatever was made of its own class meanwhile.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> set_structure(layer, torch.ones(1, 4, dtype=torch.bool))
        >>> plain_class(layer).__name__
        'Linear'
    """
    return next(plain for grouped, plain in _PLAIN.items() if isinstance(module, grouped))


def structure_of(module: nn.Module) -> Tensor | None:
    """The block structure of a grouped layer, bool ``(blocks, inputs)``; None for every other module.

    Example:
        >>> structure_of(nn.Linear(4, 2)) is None
        True
    """
    return module._buffers[STRUCTURE] if isinstance(module, GroupedModule) else None


def set_structure(module: nn.Module, inputs: Tensor | None) -> None:
    """Make a module a grouped one with the given structure, replace the one it has, or (None) make it plain again.

    The module stays the same object. Its weight is not converted: the caller puts a packed or dense one in place; a
    mask of the former shape is taken away. :func:`~fpe_lightning.sparse.convert.group` does both.

    Raises:
        ValueError: If there is no grouped form of the module.

    Example:
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> layer.weight = nn.Parameter(torch.ones(4, 1))
        >>> set_structure(layer, torch.tensor([[True, True, False, False], [False, False, True, True]]))
        >>> layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).detach()
        tensor([[3., 7.]])
    """
    if inputs is not None and (reason := cannot_group(module)):
        raise ValueError(f"The weight cannot be stored in blocks: {reason}; use the masked layout.")
    if mask_of(module) is not None:
        set_mask(module, "weight", None)
    if inputs is None:
        module._buffers.pop(STRUCTURE, None)
        for cached in CACHED:
            module.__dict__.pop(cached, None)
        module.__class__ = _PLAIN.get(type(module), type(module))
        return
    module.__class__ = _GROUPED.get(type(module), type(module))
    assert isinstance(module, GroupedModule)
    module.register_buffer(STRUCTURE, inputs.clone())
    module.prepare()
