"""The typed expansion: what it refuses without a model, what presets stand for, and what ``expand`` makes of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fpe_lightning as fpe
from fpe_lightning.expansion import BaseExpansion, resolve_expansion
from fpe_lightning.partitions import Clause, Interaction, Overlapping, Random, Shared
from fpe_lightning.partitions import SemiStructured as SemiStructuredPartition
from fpe_lightning.pruning import DiscriminantRefit, Magnitude
from tests.support.nets import equal, mlp, snapshot, train

REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (
        fpe.Expansion,
        {"alpha": 0},
        "`alpha` is the number of children of each neuron, an integer of at least 2; found 0",
    ),
    (fpe.Expansion, {"alpha": 2.0}, "an integer of at least 2; found 2.0"),
    (fpe.Expansion, {"alpha": True}, "an integer of at least 2; found True"),
    (fpe.Expansion, {"alpha": "2"}, "an integer of at least 2; found '2'"),
    (fpe.Expansion, {"optimizer_state": "follow"}, "Unknown `optimizer_state` 'follow'; known: keep, reset"),
    (fpe.Expansion, {"seed": 0.5}, "`seed` is an integer, found 0.5"),
    (fpe.Expansion, {"seed": True}, "`seed` is an integer, found True"),
    (fpe.Expansion, {"partition": "radnom"}, r"Unknown partition 'radnom'. Did you mean 'random'\? Known: clause, "),
    (fpe.Expansion, {"partition": 3}, r"A partition is a short name \(clause, .*\) or a callable .*; found 3"),
    (fpe.Expansion, {"partition": Shared}, "such as fpe.partitions.Random.*; found <class .*Shared"),
    (fpe.Expansion, {"prune": "totl"}, r"Unknown pruning rule 'totl'. Did you mean 'total'\? Known: columns, global"),
    (fpe.Expansion, {"prune": Magnitude}, r"or an object with a method `keep\(weights, excess\)`; found <class"),
    (fpe.Expansion, {"outgoing": "share"}, "Unknown `outgoing` 'share'; known: copy, partition"),
    (fpe.Expansion, {"layout": "sparse"}, "Unknown layout 'sparse'"),
    (
        fpe.Expansion,
        {"layout": "semi_structured", "alpha": 4},
        r'keeps 2 of 4 inputs, but with alpha=4 a child reads 1 of 4: use alpha=2, or layout="grouped" with partition=',
    ),
    (fpe.Expansion, {"partition": "semi_structured", "alpha": 3}, "needs alpha=2, found alpha=3"),
    (fpe.Expansion, {"partition": Clause([[0], [1]]), "alpha": 3}, "2 clauses cannot go to alpha=3 children; use a sm"),
    *[
        (
            fpe.Expansion,
            {"partition": partition, "layout": "grouped"},
            r"and with \w+\(\) each neuron has its own: use ",
        )
        for partition in ("random", Random(), Overlapping(), SemiStructuredPartition())
    ],
    (fpe.Paper, {"alpha": 0}, "an integer of at least 2; found 0"),
    (fpe.Blocks, {"groups": 0}, "has to be an integer of at least 1, found 0"),
    (fpe.Blocks, {"layout": "semi_structured", "alpha": 4}, "a child reads 1 of 4"),
    (fpe.SemiStructured, {"outgoing": "share"}, "Unknown `outgoing`"),
    (fpe.ByShape, {"layout": "grouped"}, "ByShape chooses the layout of each site itself, found layout='grouped'; use"),
    (fpe.ByShape, {"alpha": -1}, "an integer of at least 2; found -1"),
    (Magnitude, {"side": "left"}, "Unknown side 'left'; known: both, incoming, outgoing"),
    (Magnitude, {"scope": "layer"}, "Unknown scope 'layer'; known: site, model"),
    (Magnitude, {"granularity": "row"}, "Unknown granularity 'row'; known: weight, column"),
    (Magnitude, {"granularity": "column"}, 'use side="incoming" and scope="site", found side="both" and scope="site"'),
    (Magnitude, {"granularity": "column", "side": "incoming", "scope": "model"}, 'found .* scope="model"'),
]


@pytest.mark.parametrize(("make", "fields", "message"), REFUSED, ids=[message[-40:] for *_, message in REFUSED])
def test_what_cannot_be_is_refused_without_a_model(make: Callable[..., Any], fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make(**fields)


@pytest.mark.parametrize("preset", [fpe.Expansion, fpe.Paper, fpe.Blocks, fpe.SemiStructured, fpe.ByShape])
def test_fields_are_given_by_name_and_do_not_change(preset: type[BaseExpansion]) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        preset(2)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset().seed = 3  # type: ignore[misc]


OTHER: dict[str, Any] = {
    **{"alpha": 3, "partition": "shared", "prune": "incoming", "outgoing": "partition", "layout": "auto"},
    **{"optimizer_state": "reset", "seed": 5},
}


@pytest.mark.parametrize("changed", OTHER)
def test_no_field_changes_another(changed: str) -> None:
    assert OTHER.keys() == {field.name for field in dataclasses.fields(fpe.Expansion)}, "a field is not tested"
    expansion, default = fpe.Expansion(**{changed: OTHER[changed]}), fpe.Expansion()
    for name in OTHER:
        assert getattr(expansion, name) == (OTHER if name == changed else vars(default))[name]


def split(model: nn.Sequential, expansion: BaseExpansion | None = None, **options: Any) -> nn.Sequential:
    x = torch.randn(4, model[0].in_features, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    report = fpe.expand(model, expansion, optimizer=optimizer, example_inputs=x, **options)
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    train(model, optimizer, x)
    return model


def same(model: nn.Module, other: nn.Module) -> bool:
    kinds = [[type(module) for module in each.modules()] for each in (model, other)]
    return kinds[0] == kinds[1] and equal(dict(model.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize(
    ("sizes", "preset", "stands_for"),
    [
        ((64, 1024, 10), fpe.ByShape(), fpe.Blocks()),
        ((64, 256, 10), fpe.ByShape(), fpe.Paper()),
        ((64, 1024, 128), fpe.ByShape(alpha=3, seed=4), fpe.Blocks(alpha=3, seed=4, outgoing="partition")),
        ((64, 1024, 10), fpe.Paper(), fpe.Expansion(partition=Random(), prune=Magnitude(), layout="masked")),
        (
            (64, 1024, 10),
            fpe.Blocks(groups=4, seed=2),
            fpe.Expansion(partition=Shared(groups=4), prune="columns", layout="grouped", seed=2),
        ),
        (
            (64, 64, 3),
            fpe.SemiStructured(seed=1),
            fpe.Expansion(partition="semi_structured", layout="semi_structured", seed=1),
        ),
    ],
    ids=["large", "small", "wide output", "paper", "blocks", "semi_structured"],
)
def test_presets_equal_what_they_stand_for(
    sizes: tuple[int, ...], preset: BaseExpansion, stands_for: BaseExpansion
) -> None:
    model = split(mlp(*sizes), preset)
    assert same(model, split(mlp(*sizes), stands_for))
    assert not same(model, split(mlp(*sizes), dataclasses.replace(stands_for, seed=9)))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("total", Magnitude()),
        ("incoming", Magnitude(side="incoming")),
        ("outgoing", Magnitude(side="outgoing")),
        ("global", Magnitude(side="incoming", scope="model")),
        ("columns", Magnitude(side="incoming", granularity="column")),
    ],
)
def test_short_names_of_pruning_rules_equal_their_objects(name: Any, rule: Magnitude) -> None:
    sizes = (64, 16, 16, 20)
    one, other = (split(mlp(*sizes), fpe.Expansion(prune=each)) for each in (name, rule))
    assert same(one, other)


def test_alpha_and_seed_are_short_for_the_default() -> None:
    assert resolve_expansion() == fpe.ByShape()
    assert resolve_expansion(alpha=3, seed=4) == fpe.ByShape(alpha=3, seed=4)
    assert same(split(mlp(64, 8, 3), alpha=3, seed=4), split(mlp(64, 8, 3), fpe.ByShape(alpha=3, seed=4)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 3}, ValueError, r"`alpha=3` is short for .*put it into the expansion, as in `fpe.Paper\(alpha=3\)`"),
        ({"seed": 0}, ValueError, r"`seed=0` is short for .*as in `fpe.Paper\(seed=0\)`"),
        ({"alpha": 2, "seed": 1}, ValueError, r"`alpha=2, seed=1` is short for .*`fpe.Paper\(alpha=2, seed=1\)`"),
        ({"expansion": {}}, ValueError, "mapping from sites to expansions is empty; name at least one site"),
        ({"expansion": 4}, TypeError, r"takes an expansion such as `fpe.Paper\(alpha=4\)`, or a mapping .*; found 4"),
        ({"expansion": fpe.Paper}, TypeError, "takes an expansion such as .*; found <class .*Paper"),
        ({"expansion": {"0": 4}}, TypeError, "or a mapping from names of sites to them; found 4"),
    ],
)
def test_what_is_no_expansion_is_refused_and_nothing_changes(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = mlp(64, 8, 3)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        fpe.expand(model, **{"expansion": fpe.Paper(), "example_inputs": torch.zeros(2, 64), **options})
    assert equal(before, snapshot(model))


def widths(model: nn.Sequential) -> list[int]:
    return [layer.out_features for layer in model if isinstance(layer, nn.Linear)]


X = torch.zeros(2, 64)
DEEP = (64, 16, 16, 16, 3)


@pytest.mark.parametrize(
    ("expansion", "options", "expected"),
    [
        ({"0": fpe.Paper(alpha=3)}, {}, [48, 16, 16]),
        ({"[04]": fpe.Paper(alpha=3), "*": fpe.Paper()}, {}, [48, 32, 48]),
        ({"*": fpe.Paper(), "0": fpe.Paper(alpha=3)}, {}, [32, 32, 32]),
        ({"*": fpe.Paper(), "0": fpe.Paper(alpha=3)}, {"exclude": "2"}, [32, 16, 32]),
        ({"2": fpe.Paper(alpha=1), "*": fpe.Paper()}, {}, [32, 16, 32]),
        ({"*": fpe.Paper()}, {"sites": ["0", "2"]}, [32, 32, 16]),
        (fpe.Paper(), {"sites": "[02]", "exclude": ["0"]}, [16, 32, 16]),
        (fpe.Paper(), {"exclude": ["2", "4"]}, [32, 16, 16]),
    ],
)
@pytest.mark.filterwarnings("ignore::fpe_lightning.ExpansionWarning")
def test_a_mapping_and_names_say_which_site_is_split_how(
    expansion: Any, options: dict[str, Any], expected: list[int]
) -> None:
    model = mlp(*DEEP)
    report = fpe.expand(model, expansion, example_inputs=X, **options)
    assert widths(model)[:3] == expected
    assert report.nonzeros_before == report.nonzeros_after == fpe.count_nonzeros(model)
    order = [site.name for site in report.sites]
    assert order == sorted(order), "sites are split in the order in which the model uses them"


def test_one_object_for_two_patterns_is_one_expansion() -> None:
    paper = fpe.Paper(prune="incoming")
    one, other = mlp(*DEEP), mlp(*DEEP)
    fpe.expand(one, {"0": paper, "4": paper}, example_inputs=X)
    fpe.expand(other, paper, sites=["0", "4"], example_inputs=X)
    assert same(one, other)


def test_sites_of_several_expansions_are_split_by_their_own() -> None:
    model = mlp(*DEEP)
    expansions: dict[str, BaseExpansion] = {
        "0": fpe.Expansion(partition="shared", prune="incoming"),
        "4": fpe.Expansion(prune="outgoing", optimizer_state="reset"),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer, torch.randn(4, 64))
    first, last = fpe.expand(model, expansions, example_inputs=X, optimizer=optimizer).sites
    assert first.removed_outgoing == last.removed_incoming == 0
    assert first.removed_incoming > 0 < last.removed_outgoing
    assert [parameter in optimizer.state for parameter in model.parameters()] == [True] * 4 + [False] * 3 + [True]


def test_rules_for_the_whole_model_have_to_be_the_same() -> None:
    model = mlp(*DEEP)
    before = snapshot(model)
    expansions: dict[str, BaseExpansion] = {
        "0": fpe.Paper(prune="global"),
        "*": fpe.Paper(prune=Magnitude(scope="model")),
    }
    with pytest.raises(ValueError, match=r'scope="model" are pruned together by one rule, found 2: .* all of them the'):
        fpe.expand(model, expansions, example_inputs=X)
    assert equal(before, snapshot(model))


def samples() -> tuple[Tensor, Tensor]:
    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(0)).sign()
    return x, (x[:, 0] * x[:, 9] > 0).long() + (x[:, 3] > 0)


@pytest.mark.parametrize(
    ("unfitted", "fitted"),
    [
        (fpe.Paper(partition="interaction"), fpe.Paper(partition=Interaction().fit(*samples()))),
        (fpe.Paper(prune=DiscriminantRefit()), fpe.Paper(prune=DiscriminantRefit().fit(*samples()))),
        (
            fpe.Paper(partition=Interaction(), prune=DiscriminantRefit(shrinkage=0.5)),
            fpe.Paper(partition=Interaction().fit(*samples()), prune=DiscriminantRefit(shrinkage=0.5).fit(*samples())),
        ),
    ],
    ids=["partition", "pruning rule", "both"],
)
def test_data_fit_what_needs_them(unfitted: fpe.Paper, fitted: fpe.Paper) -> None:
    one, other, model = mlp(20, 4, 3), mlp(20, 4, 3), mlp(20, 4, 3)
    fpe.expand(one, unfitted, data=samples(), example_inputs=torch.zeros(2, 20))
    fpe.expand(other, fitted, example_inputs=torch.zeros(2, 20))
    assert same(one, other)
    assert (unfitted.needs_data, fitted.needs_data) == (True, False), "the object that was given stays as it is"
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"needs training samples: pass `data=\(x, y\)`, or fit it with `.fit\(x, y\)`"
    ):
        fpe.expand(model, unfitted, example_inputs=torch.zeros(2, 20))
    assert equal(before, snapshot(model))


def test_what_needs_no_data_is_not_copied() -> None:
    for expansion in (fpe.Paper(), fpe.Blocks(), fpe.ByShape(), fpe.Paper(partition=Clause([[0], [1]]))):
        assert not expansion.needs_data
        assert expansion.fit(samples(), [[1], [0]]) is expansion, "clauses of its own come first"
    taken = fpe.Paper(partition="clause").fit(None, [[1], [0]])
    assert taken.partition == Clause([[1], [0]])


def test_equal_fields_are_equal_objects() -> None:
    assert fpe.Blocks(groups=4) == copy.deepcopy(fpe.Blocks(groups=4))
    assert fpe.Blocks(groups=4) != fpe.Blocks(groups=2)
    assert fpe.Paper() != fpe.Expansion(), "presets are types of their own"
