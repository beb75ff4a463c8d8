"""Copies inside of a model that follow another part of it are split with that part, and never by themselves."""

from __future__ import annotations

import copy
import logging
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import fpe_lightning as fpe
from fpe_lightning.sparse import check_masks, mask_of
from tests.support.nets import mlp

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A student and a teacher, both of which the forward calls."""

    def __init__(self, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.student = mlp(64, 8, 6, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False) if teacher is None else teacher

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.teacher(x)
        return self.student(x) - goal


def trained(model: Any, **options: Any) -> Any:
    """A student that moved away from its teacher."""
    optimizer = optim.AdamW(model.student.parameters(), lr=0.01, **options)
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) - 1).pow(2).sum().backward()
        optimizer.step()
    return optimizer


def same_masks(one: nn.Module, other: nn.Module) -> bool:
    pairs = [(mask_of(a), mask_of(b)) for a, b in zip(one.modules(), other.modules(), strict=True)]
    masks = [(a, b) for a, b in pairs if a is not None or b is not None]
    return bool(masks) and all(a is not None and b is not None and torch.equal(a, b) for a, b in masks)


@pytest.mark.parametrize(
    "expansion", [fpe.Paper(), fpe.Blocks(groups=2), fpe.Expansion(partition="shared", layout="auto")]
)
@pytest.mark.parametrize("sites", [None, "student.*", ["student.0"], "*"])
def test_a_teacher_is_split_with_its_student(expansion: fpe.Expansion, sites: Any) -> None:
    model = Pair()
    optimizer = trained(model)
    own = model.teacher[0].bias.detach().clone()
    nonzeros = fpe.count_nonzeros(model)
    report = fpe.expand(model, expansion, optimizer=optimizer, example_inputs=X, sites=sites)
    assert all(site.name.startswith("student.") for site in report.sites)
    assert dict(report.teachers) == {"teacher": "student"}
    assert "teacher follows student" in str(report)
    assert same_masks(model.student, model.teacher) or expansion.layout != "masked"
    assert torch.equal(model.teacher[0].bias.sort().values, own.repeat_interleave(2).sort().values), "its own values"
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert fpe.count_nonzeros(model) == nonzeros
    for slow, fast in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        slow.data.lerp_(fast.data, 0.1)
    check_masks(model)
    assert model.teacher.load_state_dict(model.student.state_dict())
    assert torch.equal(model.teacher(X), model.student(X))
    # Once more: the masks are the same, so it goes on following.
    fpe.expand(model, fpe.Paper(), optimizer=optimizer, example_inputs=X, sites=sites)
    assert model.teacher[0].weight.shape == model.student[0].weight.shape == (32, 64)
    assert same_masks(model.student, model.teacher)


def test_a_teacher_that_no_optimizer_holds() -> None:
    model = Pair()
    model.teacher.requires_grad_(True)
    optimizer = trained(model)
    report = fpe.expand(model, fpe.Paper(), optimizer=optimizer, example_inputs=X)
    assert dict(report.teachers) == {"teacher": "student"}
    assert same_masks(model.student, model.teacher)


def test_an_optimizer_that_holds_the_frozen_teacher_too_holds_its_new_parameters() -> None:
    model = Pair()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    fpe.expand(model, fpe.Paper(), optimizer=optimizer, example_inputs=X)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_a_frozen_network_of_its_own_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = Pair(mlp(64, 8, 6, 4, seed=1).requires_grad_(False))
    optimizer = trained(model)
    before = model.teacher(X)
    with caplog.at_level(logging.INFO, logger="fpe_lightning"):
        report = fpe.expand(model, fpe.Paper(), optimizer=optimizer, example_inputs=X, sites="student.*")
    assert not report.teachers
    assert "`teacher` has the structure of `student`, is not trained, and has weights of its own" in caplog.text
    assert torch.equal(model.teacher(X), before)
    # Named, it follows.
    model = Pair(mlp(64, 8, 6, 4, seed=1).requires_grad_(False))
    report = fpe.expand(model, fpe.Paper(), example_inputs=X, averages=["teach*"])
    assert dict(report.teachers) == {"teacher": "student"}
    assert same_masks(model.student, model.teacher)


def test_each_target_finds_its_own_network() -> None:
    """Twin critics: four networks of one structure."""
    model = nn.ModuleDict({name: mlp(64, 8, 4, seed=seed) for seed, name in enumerate(("one", "two"))})
    for name in ("two", "one"):
        model[f"target_{name}"] = copy.deepcopy(model[name]).requires_grad_(False)
    model.forward = lambda x: sum(each(x) for each in model.values())  # type: ignore[method-assign]
    sites = [site for each in ("one", "two") for site in _sites(model, each)]
    report = fpe.expand(model, fpe.Paper(), sites=sites)
    assert dict(report.teachers) == {"target_two": "two", "target_one": "one"}
    for name in ("one", "two"):
        assert torch.equal(model[name](X), model[f"target_{name}"](X))
    assert not torch.equal(mask_of(model["one"][0]), mask_of(model["two"][0]))  # type: ignore[arg-type]


def _sites(model: nn.ModuleDict, name: str) -> list[fpe.Site]:
    return [site.inside(name) for site in fpe.find_sites(model[name], X)]


class Predicted(nn.Module):
    """BYOL: the teacher has no predictor, so the projection cannot be split with it."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.predictor = mlp(64, 8, 4), nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.predictor(self.online(x)) - self.target(x).detach()


def test_no_site_is_split_that_a_teacher_could_follow_in_part_only() -> None:
    model = Predicted()
    report = fpe.expand(model, fpe.Paper(), example_inputs=X)
    names = [site.name for site in report.sites]
    assert "online.0" in names
    assert "predictor.0" in names
    assert "online.2" not in names
    assert model(X).shape == (8, 4)
    assert same_masks(model.online, model.target)
    with pytest.raises(
        ValueError, match=r"online.2 cannot be split: `target.2.weight` follows `online.2.weight`, while"
    ):
        fpe.expand(Predicted(), fpe.Paper(), example_inputs=X, sites=["online.2"])


def test_a_teacher_named_as_a_site_is_refused() -> None:
    model = Pair()
    with pytest.raises(ValueError, match=r"No site is left to split: `teacher.[0-2].weight` is a copy that follows"):
        fpe.expand(model, fpe.Paper(), sites=[site.inside("teacher") for site in fpe.find_sites(model.teacher, X)])
    with pytest.raises(ValueError, match=r"`averages` names 'teachers', .* Did you mean 'teacher'"):
        fpe.expand(model, fpe.Paper(), example_inputs=X, averages=["teachers"])
    with pytest.raises(ValueError, match=r"`student.0` was named as a copy of another part"):
        fpe.expand(nn.ModuleDict({"student": model.student}), fpe.Paper(), averages=["student.0"])


def test_a_copy_of_the_whole_model_is_split_with_the_teacher_inside_of_it() -> None:
    model = Pair()
    average = copy.deepcopy(model)
    wrapped = optim.swa_utils.AveragedModel(model)
    fpe.expand(model, fpe.Paper(), example_inputs=X, averages=[average, wrapped])
    for each in (average, wrapped.module):
        assert torch.equal(each.student(X), model.student(X))
        assert same_masks(each.teacher, model.teacher)
    model.load_state_dict(average.state_dict())


def test_a_state_dict_restores_both() -> None:
    model = Pair()
    fpe.expand(model, fpe.Paper(), example_inputs=X)
    narrow = Pair()
    fpe.load_expanded_state_dict(narrow, model.state_dict())
    assert same_masks(narrow.student, narrow.teacher)
    assert torch.equal(narrow.teacher(X), model.teacher(X))


class Averages:
    """As EMAModel of diffusers (a list) or as in many projects (a dict), with weak references as in torch_ema."""

    def __init__(self, module: nn.Module, kind: type) -> None:
        pairs = [(name, parameter.detach().clone() + 0.01) for name, parameter in module.named_parameters()]
        self.shadow: Any = dict(pairs) if kind is dict else [value for _, value in pairs]
        self.refs = [weakref.ref(parameter) for parameter in module.parameters()]


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("part", ["", "student"])
@pytest.mark.parametrize("expansion", [fpe.Paper(), fpe.Blocks(groups=2)])
def test_averages_in_lists_and_dicts(kind: type, part: str, expansion: fpe.Expansion) -> None:
    model = Pair()
    student = model.get_submodule(part)
    average = Averages(student, kind)
    for time in range(2):
        fpe.expand(model, expansion, example_inputs=X, averages=[average])
        expansion = fpe.Paper()
        names = [name for name, _ in student.named_parameters()]
        assert kind is list or list(average.shadow) == names
        values = list(average.shadow.values()) if kind is dict else average.shadow
        assert [value.shape for value in values] == [each.shape for each in student.parameters()]
        assert [ref() for ref in average.refs] == list(student.parameters())
        with torch.no_grad():
            for parameter, value in zip(student.parameters(), values, strict=True):
                assert time or not torch.equal(parameter, value), "its own values"
                parameter.copy_(value)
        check_masks(model)


def test_an_object_without_tensors_is_no_average() -> None:
    with pytest.raises(TypeError, match=r"`averages` takes modules, names .* found SimpleNamespace"):
        fpe.expand(Pair(), fpe.Paper(), example_inputs=X, averages=[SimpleNamespace(shadow=[torch.zeros(2)])])


def test_the_average_of_diffusers() -> None:
    training_utils = pytest.importorskip("diffusers.training_utils", reason="diffusers is not installed")
    model = Pair()
    average = training_utils.EMAModel(model.student.parameters())
    fpe.expand(model, fpe.Paper(), example_inputs=X, averages=[average])
    trained(model)
    average.step(model.student.parameters())
    average.copy_to(model.student.parameters())
    check_masks(model)
