"""Make room by single weights; the rules are in :mod:`fpe_lightning.pruning.magnitude`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fpe_lightning.expansion.compact import CompactTensor
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.pruning.magnitude import comparable, keep_largest
from fpe_lightning.pruning.smallest import pieces_of
from fpe_lightning.sites.site import Axis, Site


def make_single_room(draft: Draft, split: Sequence[tuple[Site, int]], budget: str, excess: int) -> None:
    """Remove as many weights of some sites as their copies added, those of smallest magnitude of all of them.

    Args:
        draft: The expansion, in which the sites are widened already.
        split: Sites, each with the number of children of its units.
        budget: ``"total"``, ``"incoming"``, ``"outgoing"`` or ``"global"``.
        excess: How many weights have to go.

    Raises:
        ValueError: If too little would be left.
    """
    candidates = _candidates(split, budget)
    drafts = [draft[name] for name in candidates]
    inside: list[Tensor | None] = []
    pieces, alive = [], 0
    for name, tensor in zip(candidates, drafts, strict=True):
        if isinstance(tensor, CompactTensor):
            inside.append(None)
            pieces.append(tensor.pieces())
            alive += tensor.count()
        else:
            stretches = (_stretch(draft, axis, alpha) for axis, alpha in candidates[name])
            stretch = functools.reduce(torch.logical_or, stretches)
            inside.append(stretch)
            counts = draft.mask(name) & stretch
            pieces.append(pieces_of(tensor.value, counts))
            alive += int(counts.count_nonzero())
    try:
        kept = keep_largest(pieces, alive, excess, comparable([tensor.value for tensor in drafts]))
    except ValueError as error:
        names = " and ".join(candidates)
        described = ", ".join(f"{site.name} by alpha={alpha}" for site, alpha in split)
        raise ValueError(
            f"Splitting {described} adds {excess} copies of outgoing weights, biases and norms, and as many weights of "
            f"{names} have to go. {error} Use a smaller alpha, another budget, or leave this site out."
        ) from error
    for name, tensor, own, stays in zip(candidates, drafts, inside, kept, strict=True):
        if isinstance(tensor, CompactTensor):
            tensor.keep(stays)
        elif own is not None:
            draft.restrict(name, torch.cat(stays).view(tensor.value.shape) | ~own)


def _stretch(draft: Draft, axis: Axis, alpha: int) -> Tensor:
    """The entries of a widened tensor that belong to the site, to be broadcast over its other axes."""
    value = draft[axis.parameter].value
    inside = torch.zeros(value.shape[axis.dim], dtype=torch.bool, device=value.device)
    inside.narrow(0, draft.start(axis), alpha * axis.length).fill_(True)
    return inside.view([-1 if dim == axis.dim else 1 for dim in range(value.dim())])


def _candidates(split: Sequence[tuple[Site, int]], budget: str) -> dict[str, list[tuple[Axis, int]]]:
    """The axes whose weights make room, by parameter: a weight may lie in a producing and in a consuming stretch."""
    candidates: dict[str, list[tuple[Axis, int]]] = {}
    for site, alpha in split:
        axes = {"total": [*site.producers, *site.consumers], "outgoing": site.consumers}.get(budget, site.producers)
        for axis in axes:
            candidates.setdefault(axis.parameter, []).append((axis, alpha))
    return candidates
