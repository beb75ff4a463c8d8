"""Named variants: partitions, pruning rules, layouts and traced operators, also from outside of the package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The nearest of some names as a sentence after another one; nothing where none is near.

    Example:
        >>> did_you_mean("Sharde", ["random", "shared"])
        " Did you mean 'shared'?"
    """
    by_lower_case = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[nearest[0]]!r}?" if nearest else ""


class Registry(Generic[T]):
    """Objects by name. A name is given once.

    Args:
        kind: The kind of the objects, for messages, such as ``"partition"``.

    Example:
        >>> colours = Registry[int]("colour")
        >>> colours.register("red", 0xFF0000)
        >>> colours.get("red") == 0xFF0000, list(colours)
        (True, ['red'])
        >>> colours.register("red", 1)
        Traceback (most recent call last):
        ...
        ValueError: The colour 'red' is registered already; choose another name.
        >>> colours.get("rde")
        Traceback (most recent call last):
        ...
        ValueError: Unknown colour 'rde'. Did you mean 'red'? Known: red.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._found: dict[str, T] = {}

    def register(self, name: str, value: T) -> None:
        """Add an object under a name.

        Raises:
            ValueError: If the name is taken.
        """
        if name in self._found:
            raise ValueError(f"The {self.kind} {name!r} is registered already; choose another name.")
        self._found[name] = value

    def get(self, name: str) -> T:
        """Look an object up.

        Raises:
            ValueError: If there is none, with the nearest name that is known.
        """
        if name not in self._found:
            hint = did_you_mean(name, self._found)
            raise ValueError(f"Unknown {self.kind} {name!r}.{hint} Known: {', '.join(sorted(self._found))}.")
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)
