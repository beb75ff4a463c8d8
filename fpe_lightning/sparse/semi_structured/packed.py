"""2:4 layers packed once, for inference: 9/16 of the bytes of the weight, as plain tensors for any file format."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fpe_lightning.sparse.guard import mask_name
from fpe_lightning.sparse.layout import PLAN
from fpe_lightning.sparse.masked import set_mask
from fpe_lightning.sparse.prepared import PreparedModule
from fpe_lightning.sparse.semi_structured.format import (
    DTYPES,
    checked_unpack,
    pack_semi_structured,
    unpack_semi_structured,
)
from fpe_lightning.sparse.semi_structured.kernels import backend_of, multiply
from fpe_lightning.sparse.semi_structured.layers import MARK, SemiStructuredLinear
from fpe_lightning.sparse.semi_structured.layout import set_semi_structured

VALUES, PLACES = "fpe_values", "fpe_places"
"""Names of the buffers that hold a packed weight."""


@dataclass(frozen=True)
class PackedMultiplication:
    """How a device multiplies by a packed weight.

    Attributes:
        backend: The library: ``"cutlass"``, ``"cusparselt"``, or None where the weight is unpacked first.
        compressed: The weight in the format of cuSPARSELt; None for all others.
    """

    backend: str | None = None
    compressed: Tensor | None = None


class PackedLinear(PreparedModule, nn.Linear):
    """A 2:4 linear layer without a dense weight, for inference alone; made by :func:`pack_for_inference`.

    CUTLASS reads the buffers as they are. cuSPARSELt has a format of its own, made from them at every move to a GPU and
    kept next to them. Elsewhere the weight is unpacked in each forward pass: right, small and slow.
    """

    fpe_plain = nn.Linear
    fpe_values: Tensor
    fpe_places: Tensor
    fpe_plan: PackedMultiplication

    @override
    def prepare(self) -> None:
        """Decide how the device that the buffers are on multiplies by them."""
        self.fpe_plan = PackedMultiplication()
        if not self.fpe_values.is_meta and self.fpe_values.dtype in DTYPES:
            backend = backend_of(self.fpe_values.device)
            compressed = torch._cslt_compress(self.dense_weight()) if backend == "cusparselt" else None
            self.fpe_plan = PackedMultiplication(backend, compressed)

    def dense_weight(self) -> Tensor:
        """The weight in its own shape, ``(out_features, in_features)``."""
        return unpack_semi_structured(self.fpe_values, self.fpe_places)

    @override
    def forward(self, input: Tensor) -> Tensor:
        # The dense weight is gone, so that no gradient of it could be stored.
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "A packed 2:4 layer is for inference, and a gradient was asked for: run it under "
                "torch.inference_mode(), or train the model that it was packed from."
            )
        # The kernels know half precision only; the output has the dtype of the input again.
        dtype = self.fpe_values.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        x = input.to(dtype).reshape(-1, self.in_features)
        plan = self.fpe_plan
        if plan.backend is None or not len(x):
            result = F.linear(x, self.dense_weight(), bias)
        elif plan.compressed is None:
            result = multiply(x, self.fpe_values, self.fpe_places, bias, self.out_features)
        else:
            result = multiply(x, plan.compressed, None, bias, self.out_features)
        return result.view(*input.shape[:-1], self.out_features).to(input.dtype)

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, packed 2:4"


def pack_for_inference(model: nn.Module) -> int:
    """Pack the weight of every 2:4 layer of a model, in place and once; for a model in float16 or bfloat16.

    The dense parameters and their masks are gone afterwards. The packed ``state_dict`` holds plain tensors, and
    ``load_expanded_state_dict`` gives any model of the same architecture the packed layers again.

    Args:
        model: A model some of whose layers were split with ``layout="semi_structured"``.

    Returns:
        How many layers were packed.

    Raises:
        TypeError: If a weight is of another dtype. Nothing is changed then.
        ValueError: If a weight is not 2:4: something wrote to masked entries. Nothing is changed then.

    Example:
        >>> from fpe_lightning.sparse.masked import set_mask
        >>> from fpe_lightning.sparse.semi_structured.layout import set_semi_structured
        >>> model = nn.Sequential(nn.Linear(64, 64)).bfloat16()
        >>> pair = torch.tensor([[True, True, False, False], [False, False, True, True]])
        >>> set_mask(model[0], "weight", pair.repeat(32, 16))
        >>> set_semi_structured(model[0])
        >>> pack_for_inference(model)
        1
        >>> {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        {'0.bias': (64,), '0.fpe_values': (64, 32), '0.fpe_places': (64, 4)}
    """
    layers = [module for module in model.modules() if isinstance(module, SemiStructuredLinear)]
    _pack(layers, [layer.weight.dtype for layer in layers])
    return len(layers)


def repack(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Pack single layers of a model that has just loaded what :func:`unpacked_state_dict` made of a packed file.

    Args:
        model: Changed in place.
        dtypes: The dtype that each packed layer had, by the layer's name.
    """
    _pack([model.get_submodule(name) for name in dtypes], list(dtypes.values()))


def unpack_for_training(model: nn.Module) -> None:
    """Give every packed layer of a model its dense weight and its mask again; the inverse of packing.

    Example:
        >>> unpack_for_training(nn.Linear(4, 2))
    """
    for module in model.modules():
        if isinstance(module, PackedLinear):
            layer: nn.Linear = module
            weight = module.dense_weight()
            for name in (VALUES, PLACES):
                layer._buffers.pop(name)
            layer.__dict__.pop(PLAN, None)
            layer.__class__ = nn.Linear
            layer._parameters = {"weight": nn.Parameter(weight), **layer._parameters}
            if layer.bias is not None:
                layer.bias.requires_grad_()
            set_mask(layer, "weight", weight != 0)
            set_semi_structured(layer)


def _pack(layers: list[Any], dtypes: list[torch.dtype]) -> None:
    # All layers are packed before the first one changes, so that a weight that is not 2:4 leaves the model whole.
    packed = [pack_semi_structured(layer.weight.to(dtype)) for layer, dtype in zip(layers, dtypes, strict=True)]
    for layer, (values, places) in zip(layers, packed, strict=True):
        _become_packed(layer, values, places)


def _become_packed(layer: nn.Linear, values: Tensor, places: Tensor) -> None:
    del layer._parameters["weight"]
    for name in (mask_name("weight"), MARK):
        layer._buffers.pop(name, None)
    layer.__dict__.pop(PLAN, None)
    if layer.bias is not None:
        layer.bias.requires_grad_(False)
    layer.__class__ = PackedLinear
    assert isinstance(layer, PackedLinear)
    layer.register_buffer(VALUES, values)
    layer.register_buffer(PLACES, places)
    layer.prepare()


def packed_layers(state_dict: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtypes of the packed layers of a ``state_dict``, by the layer's name.

    Example:
        >>> packed_layers({"net.0.fpe_values": torch.zeros(1), "net.0.fpe_places": torch.zeros(1)})
        {'net.0': torch.float32}
    """
    names = {key: key.rpartition(".") for key in state_dict}
    return {path: state_dict[key].dtype for key, (path, _, name) in names.items() if name == VALUES}


def unpacked_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of the model before it was packed, up to the dtype: with dense weights, masks and marks.

    Entries that are zero count as masked, as the packed form does not distinguish them. The versions of layers, which
    torch keeps next to the entries, stay.

    Raises:
        ValueError: If packed tensors are not whole.
    """
    # A shallow copy keeps `_metadata`, the versions that some layers read when they load.
    result = copy.copy(state_dict) if isinstance(state_dict, OrderedDict) else dict(state_dict)
    for name in packed_layers(state_dict):
        path = f"{name}." if name else ""
        weight = checked_unpack(path + VALUES, result.pop(path + VALUES), result.pop(path + PLACES, None))
        result[path + "weight"] = weight
        result[path + mask_name("weight")] = weight != 0
        result[path + MARK] = torch.ones((), dtype=torch.bool, device=weight.device)
    return result
