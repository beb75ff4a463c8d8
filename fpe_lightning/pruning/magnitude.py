"""Pruning by magnitude: which single weights go, exactly, with ties broken by a written rule.

Ties: copied outgoing weights tie exactly in magnitude. Among equals the weight that comes first goes first: producers
before consumers, then in row-major order. The rule needs no stable sort and is the same on every device.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fpe_lightning.pruning.smallest import Piece, pieces_of, without_smallest


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The weights of smallest magnitude go.

    ``Magnitude()`` is the paper's rule: one order over the incoming and the outgoing weights of each site. With
    ``scope="model"`` a layer of many inputs pays for the copies of one that has few: in a deep network the classifier
    keeps all of its weights, where the last hidden layer alone could not pay for their copies
    (``docs/results/deep.md``). With ``granularity="column"`` inputs go from all neurons of a block together, those of
    smallest norm (see :mod:`fpe_lightning.pruning.columns`), so that the rest is stored in dense blocks.

    Args:
        side: Which weights go: ``"incoming"`` (no outgoing copy is lost), ``"outgoing"`` (every input of a parent
            stays with one of its children), or ``"both"``.
        scope: One order for each ``"site"``, or one for all sites of the ``"model"`` that are split together.
        granularity: Single weights (``"weight"``), or whole columns of a block (``"column"``).

    Raises:
        ValueError: If a value is unknown, or columns are asked of another side or scope than they can be of.

    Example:
        >>> Magnitude(granularity="column")
        Traceback (most recent call last):
        ...
        ValueError: Whole columns are columns of incoming weights, one site at a time: with granularity="column" use ...
    """

    side: Literal["both", "incoming", "outgoing"] = "both"
    scope: Literal["site", "model"] = "site"
    granularity: Literal["weight", "column"] = "weight"

    def __post_init__(self) -> None:
        for name, known in (
            ("side", ("both", "incoming", "outgoing")),
            ("scope", ("site", "model")),
            ("granularity", ("weight", "column")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}.")
        if self.granularity == "column" and (self.side, self.scope) != ("incoming", "site"):
            raise ValueError(
                'Whole columns are columns of incoming weights, one site at a time: with granularity="column" use '
                f'side="incoming" and scope="site", found side="{self.side}" and scope="{self.scope}".'
            )


def remove_smallest(weights: Sequence[Tensor], masks: Sequence[Tensor], count: int) -> list[Tensor]:
    """Drop the ``count`` weights of smallest magnitude from the masks of several tensors taken together.

    Args:
        weights: Tensors of any shapes.
        masks: Bool tensors of the same shapes; only entries that are True can be dropped.
        count: How many entries to drop, at least 0.

    Returns:
        New masks with exactly ``count`` fewer entries. Ties go by the rule in the module's docstring.

    Raises:
        ValueError: If there are not more than ``count`` entries.

    Example:
        >>> weight = torch.tensor([[0.5, -0.1], [0.1, 0.9]])
        >>> remove_smallest([weight], [torch.ones(2, 2, dtype=torch.bool)], 1)
        [tensor([[ True, False],
                [ True,  True]])]
    """
    pieces = [pieces_of(weight, mask) for weight, mask in zip(weights, masks, strict=True)]
    kept = keep_largest(pieces, sum(int(mask.count_nonzero()) for mask in masks), count, comparable(weights))
    return [torch.cat(list(several)).view(mask.shape) for several, mask in zip(kept, masks, strict=True)]


def keep_largest(
    pieces: Sequence[Sequence[Piece]], alive: int, count: int, dtype: torch.dtype
) -> list[Iterator[Tensor]]:
    """Drop the ``count`` weights of smallest magnitude of several tensors that are given in pieces.

    Args:
        pieces: The pieces of each tensor.
        alive: How many weights they hold.
        count: How many to drop.
        dtype: Magnitudes are compared in it.

    Returns:
        For each tensor, and for each of its pieces, a bool tensor of the piece's shape, True for weights that stay.
        They are computed as they are asked for, in this order.

    Raises:
        ValueError: If there are not more than ``count`` weights.
    """
    if count >= alive > 0 or count > alive:
        raise ValueError(f"Cannot remove {count} of {alive} weights: too little is left.")
    kept = without_smallest([piece for several in pieces for piece in several], count, dtype)
    return [itertools.islice(kept, len(several)) for several in pieces]


def comparable(weights: Sequence[Tensor]) -> torch.dtype:
    """The dtype to compare magnitudes in: half precision widens exactly, and not every device orders it.

    Example:
        >>> comparable([torch.zeros(1, dtype=torch.bfloat16)])
        torch.float32
    """
    return functools.reduce(torch.promote_types, [weight.dtype for weight in weights], torch.float32)
