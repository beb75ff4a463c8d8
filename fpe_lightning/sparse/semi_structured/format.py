"""The 2:4 format: which masks have it, and a weight packed into plain tensors.

A matrix is 2:4 where each run of 4 consecutive entries of a row holds at most 2 that may be non-zero. Training
multiplies by the weight and by its transpose, so a layer's mask has to be 2:4 along its columns too.

Packed, a weight is two tensors: the kept values, half as many as entries, and 2 bits for each that say where they
stood, in the order that the CUTLASS kernels of torch read. Both can be made and undone on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from fpe_lightning.sparse.memory import not_of_its_own

MULTIPLE = 64
"""Rows and columns have to be multiples of this, so that every kernel takes the weight and its transpose."""

DTYPES = (torch.float16, torch.bfloat16)
"""The dtypes of the kernels of both libraries in training."""

PACKED_DTYPES = (*DTYPES, torch.int8)


def not_semi_structured(mask: Tensor, columns: bool = True) -> str | None:
    """Why a weight with this mask cannot be stored in 2:4 form, in a few words; None where it can.

    Args:
        mask: Bool ``(rows, inputs)``, True where the weight may be non-zero.
        columns: Whether it has to be 2:4 along the columns too, as the gradient of the inputs needs.

    Example:
        >>> pair = torch.tensor([[True, True, False, False], [False, False, True, True]])
        >>> not_semi_structured(pair.repeat(32, 16))
        >>> not_semi_structured(torch.ones(64, 64, dtype=torch.bool))
        'row 0 keeps 4 of the 4 inputs 0 to 3, and 2:4 allows 2'
    """
    if mask.dim() != 2 or mask.shape[0] % MULTIPLE or mask.shape[1] % MULTIPLE or not mask.numel():
        return f"its shape is {tuple(mask.shape)}, and the kernels take multiples of {MULTIPLE} along both axes"
    for dim, line, run in ((1, "row", "inputs"), (0, "column", "rows")):
        if dim == 0 and not columns:
            continue
        kept = (mask if dim else mask.t()).reshape(mask.shape[1 - dim], -1, 4).sum(2)
        if int(kept.max()) > 2:
            number, quad = (kept > 2).nonzero()[0].tolist()
            return (
                f"{line} {number} keeps {int(kept[number, quad])} of the 4 {run} {4 * quad} to {4 * quad + 3}, "
                "and 2:4 allows 2"
            )
    return None


def pack_semi_structured(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a 2:4 weight into plain tensors.

    Args:
        weight: ``(rows, inputs)`` of dtype float16, bfloat16 or int8, with at most 2 non-zeros in each 4 inputs.

    Returns:
        The values ``(rows, inputs / 2)``, and their places, int16 ``(rows, inputs / 16)`` (int8 weights: int32
        ``(rows, inputs / 32)``).

    Raises:
        TypeError: If the dtype has no 2:4 kernel.
        ValueError: If the weight is not 2:4, which would lose values, or of a shape that the kernels do not take.

    Example:
        >>> weight = torch.tensor([[0, 1, 0, 2], [3, 0, 0, 4]], dtype=torch.float16).repeat(32, 16)
        >>> values, places = pack_semi_structured(weight)
        >>> values.shape, places.shape, torch.equal(unpack_semi_structured(values, places), weight)
        (torch.Size([64, 32]), torch.Size([64, 4]), True)
    """
    if weight.dtype not in PACKED_DTYPES:
        raise TypeError(
            f"A 2:4 weight of dtype {weight.dtype} cannot be packed: the kernels take float16, bfloat16 and int8; "
            "convert the model first, as with model.bfloat16()."
        )
    if weight.dtype == torch.int8 and weight.dim() == 2 and weight.shape[1] % 128:
        raise ValueError(f"An int8 weight needs a multiple of 128 inputs, found {weight.shape[1]}.")
    if reason := not_semi_structured(weight != 0, columns=False):
        raise ValueError(f"The weight cannot be packed in 2:4 form: {reason}; use the masked layout.")
    values, places = sparse_semi_structured_from_dense_cutlass(weight.detach().contiguous())
    return values, places


def unpack_semi_structured(values: Tensor, places: Tensor) -> Tensor:
    """The inverse of :func:`pack_semi_structured`, exact for every number.

    Returns:
        The weight, ``(rows, inputs)``.
    """
    dense: Tensor = sparse_semi_structured_to_dense_cutlass(values, places)
    return dense


def checked_unpack(name: str, values: Tensor, places: Tensor | None) -> Tensor:
    """Unpack tensors of a checkpoint, which anybody may have made.

    Args:
        name: Name of the values in the checkpoint.
        values: The values.
        places: Their places; None where the checkpoint has none.

    Returns:
        The weight, ``(rows, inputs)``.

    Raises:
        ValueError: If a tensor is missing, of another shape or dtype, or has places that :func:`pack_semi_structured`
            never writes, or its entries share memory.

    Example:
        >>> checked_unpack("0.fpe_values", torch.zeros(64, 32, dtype=torch.float16), None)
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint is broken: `0.fpe_values` has no places.
    """
    broken = f"The checkpoint is broken: `{name}`"
    if places is None:
        raise ValueError(f"{broken} has no places.")
    if reason := not_of_its_own(values) or not_of_its_own(places):
        raise ValueError(f"{broken} cannot be unpacked, as {reason}.")
    each, dtype = (16, torch.int32) if values.dtype == torch.int8 else (8, torch.int16)
    whole = values.dtype in PACKED_DTYPES and values.dim() == 2 and values.numel() > 0
    whole = whole and len(values) % MULTIPLE == 0 and values.shape[1] % (MULTIPLE // 2) == 0
    whole = whole and places.dtype == dtype and places.shape == (len(values), values.shape[1] // each)
    if not whole or values.is_meta or places.is_meta:
        found = f"{values.dtype} {tuple(values.shape)}, and its places are {places.dtype} {tuple(places.shape)}"
        raise ValueError(f"{broken} is {found}.")
    weight = unpack_semi_structured(values, places)
    # Other places would say the same of some weights, and put two values into one entry of others.
    if not torch.equal(sparse_semi_structured_from_dense_cutlass(weight)[1], places):
        raise ValueError(f"{broken} has places that no packed weight has.")
    return weight
