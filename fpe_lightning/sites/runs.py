"""Runs: the position of a unit's copies on each axis, read from a second trace at the widened sizes.

Every axis of a site is widened in place by repeating runs of entries (see ``Axis``). Which run is right depends on the
code between producer and consumer: a flattened image needs the whole block of a channel, a plain linear layer single
entries. The widened trace tells which widened entries belong together, so each divisor can be tried.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fpe_lightning.sites.candidates import Candidate
from fpe_lightning.sites.site import Axis, Site
from fpe_lightning.sites.tracing.units import Units
from fpe_lightning.sparse.record import Split, run_index

MAX_STEPS = 20_000


def axis_index(size: int, stretches: Sequence[tuple[Axis, int]]) -> Tensor:
    """The entries of a whole parameter axis that its widened form repeats.

    Args:
        size: Entries of the axis.
        stretches: The stretches that are widened, with the number of copies of each.

    Returns:
        int64, as long as the widened axis.

    Example:
        >>> axis_index(4, [(Axis("weight", 1, start=1, length=2), 2)]).tolist()
        [0, 1, 1, 2, 2, 3]
    """
    index = torch.arange(size)
    # The last stretch first, so that those before it stay in their places.
    for axis, copies in sorted(stretches, key=lambda pair: pair[0].start, reverse=True):
        index = index[Split(axis.dim, axis.start, axis.length, axis.run, copies).index(len(index))]
    return index


def sizes_of(sites: Sequence[tuple[Site, int]], shapes: Mapping[str, torch.Size]) -> dict[str, dict[int, Tensor]]:
    """For each parameter and axis that some sites widen: the entries that it repeats.

    Args:
        sites: Sites, each with its number of copies (alpha).
        shapes: Shape of each parameter.

    Returns:
        Indices by parameter name and axis.
    """
    stretches: dict[tuple[str, int], list[tuple[Axis, int]]] = {}
    for site, alpha in sites:
        for axis in site.axes():
            stretches.setdefault((axis.parameter, axis.dim), []).append((axis, alpha))
    sizes: dict[str, dict[int, Tensor]] = {}
    for (parameter, dim), found in stretches.items():
        sizes.setdefault(parameter, {})[dim] = axis_index(shapes[parameter][dim], found)
    return sizes


def find_runs(
    candidate: Candidate, copies: int, offsets: Mapping[tuple[str, int, int], int], before: Units, after: Units
) -> list[int] | str:
    """Find the run of each axis of a widened site.

    Args:
        candidate: The site.
        copies: Its number of copies in the widened trace.
        offsets: Position of each stretch (parameter, dim, start) on the widened axis.
        before: The units of the traces at the original widths.
        after: The units of the traces at the widened sizes.

    Returns:
        The run of each of ``candidate.axes``, or a sentence that says why there is none.
    """
    axes = candidate.axes
    # The unit of each entry on the widened axes.
    widened = []
    for axis in axes:
        first = after.facts.span(axis.parameter, axis.dim).start + offsets[axis.parameter, axis.dim, axis.start]
        widened.append(after.unit[first : first + copies * axis.length])
    for units in widened:
        reason = next((after.reasons[g] for g in map(int, np.unique(after.group[units])) if g in after.reasons), None)
        if reason is not None:
            return f"at a larger width {reason}"
    # Number the units of these axes from 0, so that the work does not grow with the rest of the model.
    names, places = np.unique(np.concatenate(widened), return_inverse=True)
    local = np.split(places.reshape(-1), np.cumsum([len(units) for units in widened])[:-1])
    runs = _search(axes, candidate.order, copies, local, len(names))
    if runs is None:
        return "the order of the widened entries cannot be written as repeated runs"
    if not _groups_kept(candidate, runs, copies, widened, before, after):
        return "copies would leave the group (of a group norm or a grouped convolution) of their original"
    return runs


def _search(
    axes: Sequence[Axis], order: Sequence[int], copies: int, widened: Sequence[np.ndarray], size: int
) -> list[int] | None:
    """Depth-first over the axes in the order of the forward, smallest run first, so that a wrong one fails early."""
    chosen: list[int] = []
    owners = [np.full(size, -1)]
    options = [iter(_divisors(axes[order[0]].length))]
    for _ in range(MAX_STEPS):
        axis, units = axes[order[len(chosen)]], widened[order[len(chosen)]]
        found = next(
            ((r, o) for r in options[-1] if (o := _assign(axis, r, copies, units, owners[-1])) is not None), None
        )
        if found is None:
            options.pop()
            if not chosen:
                return None
            chosen.pop()
            owners.pop()
            continue
        chosen.append(found[0])
        owners.append(found[1])
        if len(chosen) == len(axes):
            return [run for _, run in sorted(zip(order, chosen, strict=True))]
        options.append(iter(_divisors(axes[order[len(chosen)]].length)))
    return None


def _assign(axis: Axis, run: int, copies: int, units: np.ndarray, owners: np.ndarray) -> np.ndarray | None:
    """Say which original unit each widened unit descends from under a run; None if that contradicts ``owners``.

    Each widened unit must hold every entry of its original exactly once and in the old order: the copy of a flattened
    channel has each pixel once.
    """
    assert axis.units is not None
    index = run_index(axis.length, run, copies).numpy()
    original = axis.units.numpy()[index]
    if ((owners[units] >= 0) & (owners[units] != original)).any():
        return None
    extended = owners.copy()
    extended[units] = original
    if (extended[units] != original).any():
        return None
    # Old positions rise within each widened unit, and each holds as many entries as its original.
    order = np.argsort(units, kind="stable")
    same = units[order][1:] == units[order][:-1]
    if (index[order][1:][same] <= index[order][:-1][same]).any():
        return None
    entries = np.bincount(axis.units.numpy())
    held = np.bincount(units)
    return extended if (held[units] == entries[original]).all() else None


@functools.cache
def _divisors(length: int) -> list[int]:
    return [run for run in range(1, length + 1) if length % run == 0]


def _groups_kept(
    candidate: Candidate, runs: list[int], copies: int, widened: Sequence[np.ndarray], before: Units, after: Units
) -> bool:
    """Whether every group of channels holds copies of the same units as before."""
    inside = {int(group) for units in widened for group in np.unique(after.group[units])}
    old_cuts, new_cuts = before.groupings_of({candidate.group}), after.groupings_of(inside)
    if len(old_cuts) != len(new_cuts):
        return False
    if not old_cuts:
        return True
    # Name widened and original units alike, by their number in the site.
    owners = np.full(int(after.unit.max()) + 1, -1)
    names = np.full(int(before.unit.max()) + 1, -1)
    for axis, run, units in zip(candidate.axes, runs, widened, strict=True):
        assert axis.units is not None
        owners[units] = axis.units.numpy()[run_index(axis.length, run, copies).numpy()]
        start = before.facts.span(axis.parameter, axis.dim).start + axis.start
        names[before.unit[start : start + axis.length]] = axis.units.numpy()
    for small, large in zip(old_cuts, new_cuts, strict=True):
        old, new = names[before.unit[small]], owners[after.unit[large]]
        if any(not np.array_equal(np.unique(a), np.unique(b)) for a, b in zip(old, new, strict=True)):
            return False
    return True
