"""Whether what a record says of a module can have happened: its types, its ranges and its sums.

A record comes from a file, and anybody can write a file. So nothing is built from one before it is checked here.
"""

from __future__ import annotations

from typing import Any

PARTS = {"shapes", "splits", "attributes"}
FIELDS = {"dim", "start", "length", "run", "alpha"}

MOST = 2**40
"""No size in a record is larger; with more entries a weight would have terabytes."""


def impossible(found: Any) -> str | None:
    """Why decoded JSON is no history of a module, in a few words; None where it may be one.

    Args:
        found: What ``json.loads`` returned.

    Example:
        >>> split = {"dim": 0, "start": 0, "length": 8, "run": 1, "alpha": 2}
        >>> impossible({"shapes": {"bias": [8]}, "splits": {"bias": [split]}, "attributes": {}})
        >>> impossible({"shapes": {"bias": [4]}, "splits": {"bias": [split]}, "attributes": {}})
        'a split of `bias` takes entries 0 to 7 of 4'
    """
    if (
        not isinstance(found, dict)
        or found.keys() != PARTS
        or not all(isinstance(part, dict) for part in found.values())
    ):
        return f"it does not consist of {', '.join(sorted(PARTS))}"
    shapes, splits, attributes = found["shapes"], found["splits"], found["attributes"]
    if shapes.keys() != splits.keys():
        return "it splits other tensors than it has shapes of"
    for name, shape in shapes.items():
        if reason := _impossible_splits(name, shape, splits[name]):
            return reason
    for name, values in attributes.items():
        if not (isinstance(values, list) and len(values) == 2 and _grew(*values)):
            return f"`{name}` cannot grow by {_short(values)}"
    return None


def _impossible_splits(name: str, shape: Any, history: Any) -> str | None:
    """Why a tensor of this shape cannot have been split like this."""
    if not _is_list_of_sizes(shape):
        return f"`{name}` has the shape {_short(shape)}"
    if not isinstance(history, list):
        return f"the splits of `{name}` are {_short(history)}"
    now = list(shape)
    for split in history:
        if not isinstance(split, dict) or split.keys() != FIELDS or not all(map(_is_size, split.values())):
            return f"a split of `{name}` is {_short(split)}"
        dim, start, length, run, alpha = (split[key] for key in ("dim", "start", "length", "run", "alpha"))
        if dim >= len(now):
            return f"a split of `{name}` is along axis {dim} of {len(now)}"
        if not length or start + length > now[dim]:
            return f"a split of `{name}` takes entries {start} to {start + length - 1} of {now[dim]}"
        if not run or length % run:
            return f"a split of `{name}` repeats runs of {run} of {length} entries"
        now[dim] += (alpha - 1) * length
        if alpha < 2 or now[dim] > MOST:
            return f"a split of `{name}` has alpha={alpha}"
    return None


def _grew(before: Any, after: Any) -> bool:
    """Whether one integer, or each of several, can have become another by splits."""
    if _is_list_of_sizes(before) and _is_list_of_sizes(after) and len(before) == len(after):
        return before != after and all(old <= new for old, new in zip(before, after, strict=True))
    return _is_size(before) and _is_size(after) and before < after


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_size, value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
