"""Teachers: copies of a network inside of a model that follow it (BYOL, MoCo, DINO, mean teacher, DQN targets).

A teacher is updated from its student entry by entry, by a moving average or by ``load_state_dict``. So it takes part in
every split of the student, with the student's masks and its own values, and its widths are no sites of their own.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from fpe_lightning.expansion.wrappers import as_optimizers
from fpe_lightning.sites.candidates import Refusal
from fpe_lightning.sites.site import Site
from fpe_lightning.sparse.masked import mask_of

log = logging.getLogger(__name__)

Form = tuple[tuple[str, str, tuple[int, ...], str], ...]

T = TypeVar("T")

SAMPLES = 65536

ALIKE = 0.25
"""Cosine of the weights of two networks above which one is a copy of the other; independent networks are near 0."""


class Mirror(nn.Module):
    """A place on the way to a copy that stands in for its student; it has no tensors of its own."""


@dataclass(frozen=True)
class Teacher:
    """A copy of a part of a model.

    Attributes:
        name: Its qualified name in the model; empty for a copy outside of the model.
        student: Qualified name of the part that it copies; empty for the whole model.
        module: The copy.
    """

    name: str
    student: str
    module: nn.Module

    def mirror(self) -> nn.Module:
        """A module in which the copy has the qualified name of its student."""
        if not self.student:
            return self.module
        root = node = Mirror()
        *path, last = self.student.split(".")
        for part in path:
            inner = Mirror()
            node.add_module(part, inner)
            node = inner
        node.add_module(last, self.module)
        return root


def find_teachers(
    model: nn.Module,
    optimizer: Any = None,
    averages: Iterable[nn.Module] = (),
    following: Collection[str] = (),
    outside: Iterable[Teacher] = (),
) -> list[Teacher]:
    """Find the teachers of a model, and the students of given ones.

    A part of the model is a teacher if nothing trains it, a trained part has the same parameters, and the weights of
    both are alike or masked alike. Weights tell a copy from a frozen network of its own, which stays as it is.

    Args:
        model: The model.
        optimizer: One or several optimizers: parameters that none of them holds are not trained. None leaves it to
            ``requires_grad``.
        averages: Copies inside of the model or outside, whatever their weights.
        following: Names of parts of the model that are known to be updated, whatever their weights.
        outside: Copies outside of the model whose students are known.

    Returns:
        The teachers, those in ``averages`` first. A copy of the whole model brings its own copies of the teachers.

    Raises:
        ValueError: If one of ``averages`` is a part of the model that has no student.

    Example:
        >>> import copy
        >>> model = nn.ModuleDict({"online": nn.Linear(8, 4)})
        >>> model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)
        >>> [(teacher.name, teacher.student) for teacher in find_teachers(model)]
        [('target', 'online')]
    """
    names = {module: name for name, module in model.named_modules()}
    parts = dict(names_of(model))
    given = [*(_given(module, names.get(module, ""), parts) for module in averages), *outside]
    found = list(given)
    for copy in _candidates(model, optimizer, [teacher.name for teacher in given if teacher.name]):
        if copy.follows or copy.name in following:
            found.append(Teacher(copy.name, copy.student, copy.module))
        else:
            log.info(
                "`%s` has the structure of `%s`, is not trained, and has weights of its own: it stays as it is. Name "
                "it in `averages` if it follows `%s`.",
                *(copy.name, copy.student, copy.student),
            )
    return [*found, *_inner(given, found)]


def names_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model that have parameters, by name.

    Example:
        >>> [name for name, _ in names_of(nn.Sequential(nn.Linear(2, 1), nn.ReLU()))]
        ['', '0']
    """
    return ((name, part) for name, part in model.named_modules() if next(part.parameters(), None) is not None)


@dataclass(frozen=True)
class _Candidate:
    """A part of a model that nothing trains, and the trained part of the same form that it resembles most."""

    name: str
    student: str
    module: nn.Module
    alike: float

    @property
    def follows(self) -> bool:
        """Whether weights or masks tell that it is a copy; independent weights are alike by 1 / sqrt(weights)."""
        weights = sum(parameter.numel() for parameter in self.module.parameters() if parameter.dim() > 1)
        return self.alike >= min(max(ALIKE, 4 / weights**0.5), 0.999) or _masked(self.module)


def _candidates(model: nn.Module, optimizer: Any, taken: Iterable[str] = ()) -> Iterator[_Candidate]:
    trained, done = _trained(model, optimizer), list(taken)
    untrained: dict[str, nn.Module] = {}
    students: dict[Form, dict[str, nn.Module]] = {}
    for name, part in names_of(model):
        if any(id(parameter) in trained for parameter in part.parameters()):
            students.setdefault(_form(part), {})[name] = part
        elif any(parameter.dim() > 1 for parameter in part.parameters()):  # all norms look alike
            untrained[name] = part
    # The outermost parts come first; parts inside of a copy belong to it.
    for name, part in untrained.items():
        if any(_inside(name, other) for other in done):
            continue
        others = {key: each for key, each in students.get(_form(part), {}).items() if not _inside(name, key)}
        nearest = _nearest(part, others)
        if nearest is not None:
            done.append(name)
            yield _Candidate(name, nearest[1], part, nearest[0])


def part_of(model: nn.Module, name: str) -> nn.Module | None:
    """A part of a model by its qualified name; None where a mirror has no such part.

    Example:
        >>> part_of(Teacher("", "net", nn.Linear(2, 1)).mirror(), "head") is None
        True
    """
    if not isinstance(model, Mirror):
        return model.get_submodule(name)
    found = dict(model.named_modules(remove_duplicate=False)).get(name)
    return None if isinstance(found, Mirror) else found


def resolve_averages(model: nn.Module, averages: Iterable[Any]) -> tuple[list[nn.Module], list[Any]]:
    """Averages as modules, where names or globs stand for parts of the model, and all that are neither.

    Raises:
        ValueError: If a name matches no part of the model.

    Example:
        >>> resolve_averages(nn.Sequential(nn.Linear(2, 1)), ["0"])
        ([Linear(in_features=2, out_features=1, bias=True)], [])
    """
    names = {name: module for name, module in model.named_modules() if name}
    found: list[nn.Module] = []
    others: list[Any] = []
    for each in [averages] if isinstance(averages, (str, nn.Module)) else averages:
        if not isinstance(each, str):
            (found if isinstance(each, nn.Module) else others).append(each)
            continue
        matching = [name for name in names if fnmatchcase(name, each)]
        # A glob matches the parts of a part too.
        outermost = [name for name in matching if not any(name != o and _inside(name, o) for o in matching)]
        if not outermost:
            nearest = difflib.get_close_matches(each, names, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"`averages` names {each!r}, and the model has no such part.{hint}")
        found.extend(names[name] for name in outermost)
    return list(dict.fromkeys(found)), others


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
                copies.setdefault(_joined(teacher.student, key), []).append(_joined(teacher.name, key))
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
    owned = {copy: student for student, several in copies.items() for copy in several}
    left: list[tuple[Site, T]] = []
    refusals: list[Refusal] = []
    for site, value in pairs:
        names = site.parameters()
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
    return any(_inside(name, teacher.student) for split in splits for name in split.site.parameters())


def watch(model: nn.Module, optimizer: Any = None) -> dict[str, float]:
    """A number for each part that is like a teacher but has weights of its own; it changes when the part is updated.

    Example:
        >>> watch(nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False))) != {}
        True
    """
    return {
        copy.name: sum(float(_sample(parameter).abs().sum()) for parameter in copy.module.parameters())
        for copy in _candidates(model, optimizer)
        if not copy.follows
    }


def is_copy(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module outside of a model is a copy of a part of it with more than one weight.

    Example:
        >>> import copy
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
        >>> is_copy(copy.deepcopy(net), nn.ModuleDict({"net": net}))
        True
    """
    form = _form(module)
    if sum(len(shape) > 1 for _, _, shape, _ in form) < 2:
        return False
    same = {name: part for name, part in names_of(model) if _form(part) == form}
    nearest = _nearest(module, same)
    return nearest is not None and nearest[0] >= ALIKE


def _given(module: nn.Module, name: str, parts: Mapping[str, nn.Module]) -> Teacher:
    """The teacher that a module was said to be."""
    others = {key: each for key, each in parts.items() if not name or not (_inside(name, key) or _inside(key, name))}
    # An average may be wrapped, as by `AveragedModel`.
    for path, inner in module.named_modules():
        if next(inner.parameters(), None) is None:
            continue
        form = _form(inner)
        student = _nearest(inner, {key: each for key, each in others.items() if _form(each) == form})
        if student is not None:
            return Teacher(_joined(name, path) if name else "", student[1], inner)
    if name:
        raise ValueError(
            f"`{name}` was named as a copy of another part of the model, and no other part has the same parameters; "
            "leave it out of `averages`."
        )
    return Teacher("", "", module)  # the draft says in which tensor it differs from the model


def _inner(given: Sequence[Teacher], found: Sequence[Teacher]) -> list[Teacher]:
    """The copies of teachers that copies of the model, or of a part around a teacher, hold."""
    inner = []
    for whole in given:
        for teacher in found:
            if not whole.name and teacher.name and _inside(teacher.name, whole.student):
                path = teacher.name.removeprefix(whole.student).lstrip(".")
                inner.append(Teacher("", teacher.student, whole.module.get_submodule(path)))
    return inner


def _trained(model: nn.Module, optimizer: Any) -> set[int]:
    """The ids of all parameters that are trained."""
    optimizers = as_optimizers(optimizer)
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    averaged = {id(p) for each in model.modules() if isinstance(each, AveragedModel) for p in each.parameters()}
    return {
        id(parameter)
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in averaged and (not optimizers or id(parameter) in held)
    }


def _nearest(module: nn.Module, others: Mapping[str, nn.Module]) -> tuple[float, str] | None:
    """Of other parts of the same form, the one with the same masks whose weights are the most alike, and how alike."""
    alike = [(_cosine(module, other), name) for name, other in others.items() if _same_masks(module, other)]
    # The first of equals: names come in the order of the model.
    return max(alike, key=lambda each: each[0], default=None)


def _form(module: nn.Module) -> Form:
    """Names, shapes and owners of all parameters, in order."""
    return tuple(
        (prefix, name, () if is_lazy(parameter) else tuple(parameter.shape), type(owner).__name__)
        for prefix, owner in module.named_modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    )


def _masks(module: nn.Module) -> list[Tensor | None]:
    return [mask_of(owner, name) for owner in module.modules() for name in owner._parameters]


def _masked(module: nn.Module) -> bool:
    return any(mask is not None for mask in _masks(module))


def _same_masks(module: nn.Module, other: nn.Module) -> bool:
    return all(
        left is right is None or (left is not None and right is not None and torch.equal(left, right.to(left.device)))
        for left, right in zip(_masks(module), _masks(other), strict=True)
    )


@torch.no_grad()
def _cosine(module: nn.Module, other: nn.Module) -> float:
    """How alike the weight matrices of two networks of one form are: 1 for copies, about 0 for independent ones."""
    product = own = others = 0.0
    for left, right in zip(module.parameters(), other.parameters(), strict=True):
        if left is right or left.dim() < 2:  # biases and norms are alike in independent networks
            continue
        one, two = _sample(left), _sample(right).to(left.device)
        product, own, others = product + float(one @ two), own + float(one @ one), others + float(two @ two)
    return product / (own * others) ** 0.5 if own and others else 0.0


def _sample(parameter: nn.Parameter) -> Tensor:
    """Some of the entries of a parameter, always the same ones."""
    value: Any = parameter.detach()
    flat = (value.full_tensor() if hasattr(value, "full_tensor") else value).flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)].double()


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _inside(name: str, other: str) -> bool:
    """Whether a part is another one, or inside of it."""
    return not other or name == other or name.startswith(f"{other}.")


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}".strip(".")
