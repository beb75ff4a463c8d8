"""Which sites a teacher can follow: those of its student, and all of a site's parameters or none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from fpe_lightning.expansion.parts import is_inside, joined
from fpe_lightning.expansion.teachers import Teacher
from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.site import Site

T = TypeVar("T")


def copies_of(teachers: Iterable[Teacher]) -> dict[str, list[str]]:
    """The names of the copies inside of the model, for each parameter and buffer of a student.

    Example:
        >>> copies_of([Teacher("target", "online", nn.Linear(2, 1))])
        {'online.weight': ['target.weight'], 'online.bias': ['target.bias']}
    """
    copies: dict[str, list[str]] = {}
    for teacher in teachers:
        if teacher.name:
            for key, _ in _tensors(teacher.module):
                copies.setdefault(joined(teacher.student, key), []).append(joined(teacher.name, key))
    return copies


def sites_of_students(
    pairs: Sequence[tuple[Site, T]], teachers: Sequence[Teacher], named: str | Sequence[str] = ()
) -> tuple[list[tuple[Site, T]], list[Refusal]]:
    """Leave out the sites that belong to teachers, and those that a teacher could follow in part only.

    Args:
        pairs: The sites chosen so far, each with anything else.
        teachers: The teachers of the model.
        named: The names or patterns that sites were asked for by.

    Returns:
        The pairs that are left, whose teachers follow, and reasons against the others.

    Raises:
        ValueError: If a site was asked for by name, or no site is left.

    Example:
        >>> sites_of_students([], [])
        ([], [])
    """
    names_given = [named] if isinstance(named, str) else named
    copies = copies_of(teachers)
    # A width of a copy is no site of its own: it splits with its student.
    owned = {copy: student for student, several in copies.items() for copy in several}
    left: list[tuple[Site, T]] = []
    refusals: list[Refusal] = []
    for site, value in pairs:
        names = site.parameters()
        # All parameters of the site have as many copies, or a copy would be split in part.
        copied = {len(copies.get(name, ())) for name in names}
        if own := next((name for name in names if name in owned), None):
            why = f"`{own}` is a copy that follows `{owned[own]}`, and is split when that is"
        elif len(copied) > 1:
            with_copy = next(name for name in names if name in copies)
            without = next(name for name in names if len(copies.get(name, ())) < max(copied))
            why = (
                f"`{copies[with_copy][0]}` follows `{with_copy}`, while nothing follows `{without}`, so the copy "
                "cannot be split with it"
            )
        else:
            left.append((site, value))
            continue
        if site.name in names_given:
            raise ValueError(f"{site.name} cannot be split: {why}; leave it out of `sites`.")
        refusals.append(Refusal(site.name, why))
    if refusals and not left:
        raise ValueError(f"No site is left to split: {refusals[0].reason}.")
    return left, refusals


def has_split(teacher: Teacher, splits: Iterable[Any]) -> bool:
    """Whether one of the splits changed the student of a teacher.

    Example:
        >>> has_split(Teacher("target", "online", nn.Linear(2, 1)), [])
        False
    """
    return any(is_inside(name, teacher.student) for split in splits for name in split.site.parameters())


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
