"""Whether a tensor of a file has the memory that its shape says.

A file of a few kilobytes can hold tensors of any shape all of whose entries are one number in memory. A copy of such a
tensor, which every load makes, has all entries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def not_of_its_own(tensor: Tensor) -> str | None:
    """Why a tensor must not be copied, in a few words; None where each entry has memory of its own.

    Tensors of other classes (shards, quantized ones, tensors that are still in their file) are left to them.

    Example:
        >>> not_of_its_own(torch.zeros(3, 4))
        >>> not_of_its_own(torch.zeros(1).expand(400_000_000))
        'its 400000000 entries share the memory of 1'
    """
    if not isinstance(tensor, Tensor):
        return f"it is a {type(tensor).__name__} and no tensor"
    if type(tensor) not in (Tensor, nn.Parameter):
        return None
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"it is stored as {tensor.layout}"
    entries = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > entries:
        return f"its {tensor.numel()} entries share the memory of {entries}"
    return None
