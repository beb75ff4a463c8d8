"""Teachers: copies of a network inside of a model that follow it (BYOL, MoCo, DINO, mean teacher, DQN targets).

A teacher is updated from its student entry by entry, by a moving average or by ``load_state_dict``. So it takes part in
every split of the student, with the student's masks and its own values, and its widths are no sites of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from fpe_lightning.expansion.likeness import ALIKE, Form, form_of, is_masked, most_alike, sample_of
from fpe_lightning.expansion.optimizer_parts import as_optimizers
from fpe_lightning.expansion.parts import is_inside, joined, mirror, names_of

log = logging.getLogger(__name__)


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
        return mirror(self.student, self.module)


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
        # Few weights are alike by chance: the threshold rises as they get fewer.
        weights = sum(parameter.numel() for parameter in self.module.parameters() if parameter.dim() > 1)
        return self.alike >= min(max(ALIKE, 4 / weights**0.5), 0.999) or is_masked(self.module)


def _candidates(model: nn.Module, optimizer: Any, taken: Iterable[str] = ()) -> Iterator[_Candidate]:
    trained, done = _trained(model, optimizer), list(taken)
    untrained: dict[str, nn.Module] = {}
    students: dict[Form, dict[str, nn.Module]] = {}
    for name, part in names_of(model):
        # A part with one trained parameter is a student; one without any is perhaps a teacher.
        if any(id(parameter) in trained for parameter in part.parameters()):
            students.setdefault(form_of(part), {})[name] = part
        elif any(parameter.dim() > 1 for parameter in part.parameters()):  # all norms look alike
            untrained[name] = part
    # The outermost parts come first; parts inside of a copy belong to it.
    for name, part in untrained.items():
        if any(is_inside(name, other) for other in done):
            continue
        others = {key: each for key, each in students.get(form_of(part), {}).items() if not is_inside(name, key)}
        nearest = most_alike(part, others)
        if nearest is not None:
            done.append(name)
            yield _Candidate(name, nearest[1], part, nearest[0])


def watch(model: nn.Module, optimizer: Any = None) -> dict[str, float]:
    """A number for each part that is like a teacher but has weights of its own; it changes when the part is updated.

    Example:
        >>> watch(nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False))) != {}
        True
    """
    return {
        copy.name: sum(float(sample_of(parameter).abs().sum()) for parameter in copy.module.parameters())
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
    # One weight alone of a common shape says too little.
    form = form_of(module)
    if sum(len(shape) > 1 for _, _, shape, _ in form) < 2:
        return False
    same = {name: part for name, part in names_of(model) if form_of(part) == form}
    nearest = most_alike(module, same)
    return nearest is not None and nearest[0] >= ALIKE


def _given(module: nn.Module, name: str, parts: Mapping[str, nn.Module]) -> Teacher:
    """The teacher that a module was said to be."""
    others = {
        key: each for key, each in parts.items() if not name or not (is_inside(name, key) or is_inside(key, name))
    }
    # An average may be wrapped, as by `AveragedModel`.
    for path, inner in module.named_modules():
        if next(inner.parameters(), None) is None:
            continue
        form = form_of(inner)
        student = most_alike(inner, {key: each for key, each in others.items() if form_of(each) == form})
        if student is not None:
            return Teacher(joined(name, path) if name else "", student[1], inner)
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
            if not whole.name and teacher.name and is_inside(teacher.name, whole.student):
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
