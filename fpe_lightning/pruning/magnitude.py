"""Exact non-zero accounting, and which weights go when there are too many.

A budget rule names the weights (of a site: producers and consumers together) that make room for the copies:

- ``"total"`` (the paper): one magnitude order over incoming and outgoing weights together;
- ``"incoming"``: only incoming weights make room, so that no outgoing copy is lost;
- ``"outgoing"``: only outgoing weights make room, so that every input of a parent stays with one of its children;
- ``"global"``: one magnitude order over the incoming weights of all sites that are split together, so that a layer of
  many inputs pays for the copies of one that has few: in a deep network the classifier keeps all of its weights, where
  the last hidden layer alone could not make room for their copies (``docs/results/deep.md``). For one site it is
  ``"incoming"``;
- ``"columns"`` and ``"blocks"``: whole columns and blocks make room (see :mod:`fpe_lightning.pruning.columns`).

Ties: copied outgoing weights tie exactly in magnitude. Among equals the weight that comes first goes first: producers
before consumers, then in row-major order. The rule needs no stable sort and is the same on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fpe_lightning.pruning.smallest import Piece, pieces_of, without_smallest

STRUCTURED = ("columns", "blocks")
GLOBAL = "global"
BUDGETS = ("total", "incoming", "outgoing", GLOBAL, *STRUCTURED)


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
    return [torch.cat(several).view(mask.shape) for several, mask in zip(kept, masks, strict=True)]


def keep_largest(pieces: Sequence[Sequence[Piece]], alive: int, count: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Drop the ``count`` weights of smallest magnitude of several tensors that are given in pieces.

    Args:
        pieces: The pieces of each tensor.
        alive: How many weights they hold.
        count: How many to drop.
        dtype: What magnitudes are compared in.

    Returns:
        For each piece a bool tensor of its shape, True for what stays.

    Raises:
        ValueError: If there are not more than ``count`` weights.
    """
    if count >= alive > 0 or count > alive:
        raise ValueError(f"Cannot remove {count} of {alive} weights: too little is left.")
    kept = without_smallest([piece for several in pieces for piece in several], count, dtype)
    return [[next(kept) for _ in several] for several in pieces]


def comparable(weights: Sequence[Tensor]) -> torch.dtype:
    """The dtype to compare magnitudes in: half precision widens exactly, and not every device orders it.

    Example:
        >>> comparable([torch.zeros(1, dtype=torch.bfloat16)])
        torch.float32
    """
    return functools.reduce(torch.promote_types, [weight.dtype for weight in weights], torch.float32)
