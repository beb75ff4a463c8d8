"""The knowledge of a trace about the tensors that it met."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, eq=False)
class Tag:
    """The knowledge of the tracer about one tensor; a tag equals itself alone.

    Attributes:
        labels: One label for each independent axis.
        parameter: Whether it is a parameter or a view of one, so that its entries may be copied or divided.
        filler: Whether all entries are interchangeable (constants, noise), so that it may have any width.
    """

    labels: tuple[Tensor, ...] = ()
    parameter: bool = False
    filler: bool = False


UNTAGGED = Tag()
"""The tag of all tensors of which nothing is known."""


class Tags:
    """The tags of the tensors of one trace; nothing is left on the tensors themselves.

    Args:
        keep: Whether to keep the tensors alive. Fake ones hold no memory, and a plain dictionary answers faster; real
            activations are let go as the forward lets them go.
    """

    def __init__(self, *, keep: bool) -> None:
        self._kept: dict[int, tuple[Tensor, Tag]] | None = {} if keep else None
        self._weak: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> Tag:
        """The tag of a tensor; an empty one if it has none.

        Example:
            >>> import torch
            >>> tags, tensor = Tags(keep=True), torch.zeros(2)
            >>> tags.put(tensor, Tag(filler=True))
            >>> tags.of(tensor).filler, tags.of(torch.zeros(2)).filler
            (True, False)
        """
        if self._kept is None:
            return self._weak.get(tensor, UNTAGGED)
        found = self._kept.get(id(tensor))
        return UNTAGGED if found is None else found[1]

    def put(self, tensor: Tensor, tag: Tag) -> None:
        """Remember the tag of a tensor."""
        if self._kept is None:
            self._weak[tensor] = tag
        else:
            self._kept[id(tensor)] = (tensor, tag)
