"""Make room at one site by single weights; the rules are in :mod:`fpe_lightning.expansion.budget`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fpe_lightning.expansion.budget import comparable, keep_largest
from fpe_lightning.expansion.compact import CompactTensor
from fpe_lightning.expansion.draft import Draft
from fpe_lightning.expansion.sites import Axis, Site
from fpe_lightning.expansion.smallest import pieces_of


def make_single_room(draft: Draft, site: Site, alpha: int, budget: str, excess: int) -> None:
    """Remove as many of a site's weights as its copies added, those of smallest magnitude.

    Args:
        draft: The expansion, in which the site is widened already.
        site: The site.
        alpha: Children of each unit.
        budget: ``"total"``, ``"incoming"`` or ``"outgoing"``.
        excess: How many weights have to go.

    Raises:
        ValueError: If too little would be left.
    """
    candidates = _candidates(site, budget)
    drafts = [draft[name] for name in candidates]
    inside: list[Tensor | None] = []
    pieces, alive = [], 0
    for name, tensor in zip(candidates, drafts, strict=True):
        if isinstance(tensor, CompactTensor):
            inside.append(None)
            pieces.append(tensor.pieces())
            alive += tensor.count()
        else:
            stretches = (_stretch(draft, axis, alpha) for axis in candidates[name])
            stretch = functools.reduce(torch.logical_or, stretches)
            inside.append(stretch)
            counts = draft.mask(name) & stretch
            pieces.append(pieces_of(tensor.value, counts))
            alive += int(counts.count_nonzero())
    try:
        kept = keep_largest(pieces, alive, excess, comparable([tensor.value for tensor in drafts]))
    except ValueError as error:
        names = " and ".join(candidates)
        raise ValueError(
            f"Splitting {site.name} by alpha={alpha} adds {excess} copies of outgoing weights, biases and "
            f"norms, and as many weights of {names} have to go. {error} Use a smaller alpha, another "
            "budget, or leave this site out."
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


def _candidates(site: Site, budget: str) -> dict[str, list[Axis]]:
    """The axes whose weights make room, by parameter: a weight may lie in a producing and in a consuming stretch."""
    axes = {"total": [*site.producers, *site.consumers], "incoming": site.producers, "outgoing": site.consumers}[budget]
    candidates: dict[str, list[Axis]] = {}
    for axis in axes:
        candidates.setdefault(axis.parameter, []).append(axis)
    return candidates
