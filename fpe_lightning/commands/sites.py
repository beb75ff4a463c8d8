"""``fpe sites torchvision.models.resnet18 --input 1,3,64,64``: a table of the widths of a model."""

from __future__ import annotations

import argparse
import json
import os
import pydoc
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from fpe_lightning.sites import Refusal, Site, find_sites
from fpe_lightning.sites.sensible import sensible_sites


def main(words: list[str]) -> int | str:
    """Print the sites of a model, and the reasons against its other widths.

    Args:
        words: The words after ``fpe sites``.

    Returns:
        An exit code, or one sentence about a mistake.
    """
    parser = argparse.ArgumentParser(prog="fpe sites", description=main.__doc__)
    parser.add_argument("model", help="a class or function that makes it, such as torchvision.models.resnet18")
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="SHAPE[:DTYPE]",
        help="an argument of the forward, such as 1,3,64,64 or 1,16:int64; repeat it for the next one",
    )
    parser.add_argument("--kwargs", default="{}", metavar="JSON", help="what the class is called with")
    parser.add_argument("--alpha", type=int, default=2, help="children of each neuron")
    arguments = parser.parse_args(words)
    try:
        model = build(arguments.model, arguments.kwargs)
        sites, refusals = find_sites(model, tuple(map(example, arguments.input)), explain=True)
        if sites:
            sites, left_out = sensible_sites(model, [(site, arguments.alpha) for site in sites])
            refusals = [*left_out, *refusals]
    except (TypeError, ValueError) as error:
        return f"error: {error}"
    print(table(sites, arguments.alpha))
    if refusals:
        print(f"\nLeft out ({len(refusals)}):\n{reasons(refusals)}")
    return 0


def build(path: str, kwargs: str = "{}") -> nn.Module:
    """Make a model from a dotted name and keyword arguments in JSON.

    Raises:
        ValueError: If there is no such name, it is not called with these arguments, or makes no module.

    Example:
        >>> build("torch.nn.Linear", '{"in_features": 2, "out_features": 1}')
        Linear(in_features=2, out_features=1, bias=True)
        >>> build("torch.nn.Liner")
        Traceback (most recent call last):
        ...
        ValueError: There is no `torch.nn.Liner`; give the dotted name of a class or function that can be imported.
    """
    sys.path.insert(0, os.getcwd())  # a model of the project in this folder
    maker = pydoc.locate(path)
    if not callable(maker):
        raise ValueError(f"There is no `{path}`; give the dotted name of a class or function that can be imported.")
    try:
        model = maker(**json.loads(kwargs))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"`{path}` cannot be called with --kwargs '{kwargs}': {error}.") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"`{path}` makes a {type(model).__name__}, and sites are those of an nn.Module.")
    return model


def example(text: str) -> Tensor:
    """An input of zeros from its shape and dtype.

    Raises:
        ValueError: If the text is no shape, or the dtype is unknown.

    Example:
        >>> example("1,16:int64").shape, example("1,16:int64").dtype
        (torch.Size([1, 16]), torch.int64)
    """
    shape, _, name = text.partition(":")
    dtype: Any = getattr(torch, name or "float32", None)
    if not isinstance(dtype, torch.dtype) or not shape.replace(",", "").isdigit():
        raise ValueError(f"--input takes a shape such as 1,3,64,64 or 1,16:int64, found {text!r}.")
    return torch.zeros([int(size) for size in shape.split(",") if size], dtype=dtype)


def table(sites: list[Site], alpha: int) -> str:
    """A line for each site: its name, its width before and after, its fan-in and its kind.

    Example:
        >>> print(table([Site("0", 8, 4, (), (), ())], 2))
        site  width  with alpha=2  fan-in  kind
        0         8            16       4  hidden
    """
    head = ("site", "width", f"with alpha={alpha}", "fan-in", "kind")
    rows = [head, *((s.name, str(s.width), str(s.width * alpha), str(s.fan_in), s.kind) for s in sites)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (1, 2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def reasons(refusals: list[Refusal], names: int = 4) -> str:
    """A line for each reason, with the widths that it is against.

    Example:
        >>> print(reasons([Refusal("a", "it is frozen"), Refusal("b", "it is frozen")]))
          it is frozen: a, b
    """
    by_reason: dict[str, list[str]] = {}
    for refusal in refusals:
        by_reason.setdefault(refusal.reason, []).append(refusal.name)
    counts = Counter({reason: len(found) for reason, found in by_reason.items()})
    return "\n".join(
        f"  {reason}: {', '.join(by_reason[reason][:names])}{f' and {n - names} more' if n > names else ''}"
        for reason, n in counts.most_common()
    )
