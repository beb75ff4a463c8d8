"""Partitions are disjoint, complete and balanced, whatever is alive; what is none is refused with a reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from fpe_lightning.partitions import Clause, Feature, Random, SemiStructured, register_partition, resolve_partition
from fpe_lightning.partitions.balanced import balanced
from fpe_lightning.partitions.partition import children_masks

seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def problem(neurons: int, inputs: int, k: int, density: float, seed: int) -> tuple[Tensor, Tensor]:
    draw = generator(seed)
    weight = torch.randn(neurons, inputs, k, generator=draw)
    alive = torch.rand(neurons, inputs, generator=draw) < density
    return weight * alive.unsqueeze(-1), alive


sizes = st.tuples(st.integers(1, 6), st.integers(2, 24), st.integers(1, 3), st.sampled_from([0.3, 0.8, 1.1]), seeds)


@given(sizes, st.sampled_from(["random", "shared", "feature"]), st.integers(2, 5), seeds)
def test_every_alive_input_reaches_exactly_one_child(size: tuple, name: str, alpha: int, seed: int) -> None:
    weight, alive = problem(*size)
    masks = children_masks(resolve_partition(name), weight, alive, alpha, generator(seed))
    assert masks.shape == (alive.shape[0], alpha, alive.shape[1])
    assert torch.equal(masks.sum(1), alive.long())


@given(sizes, st.integers(2, 5), seeds)
def test_random_is_balanced_for_each_neuron(size: tuple, alpha: int, seed: int) -> None:
    weight, alive = problem(*size)
    shares = children_masks(Random(), weight, alive, alpha, generator(seed)).sum(2)
    assert int((shares.amax(1) - shares.amin(1)).max()) <= 1


@given(sizes, st.sampled_from(["shared", "feature"]), st.integers(2, 5), seeds)
def test_shared_and_feature_are_one_balanced_partition_of_the_layer(
    size: tuple, name: str, alpha: int, seed: int
) -> None:
    weight, alive = problem(*size[:3], 1.1, size[4])
    masks = children_masks(resolve_partition(name), weight, alive, alpha, generator(seed))
    assert (masks == masks[0]).all()
    shares = masks[0].sum(1)
    assert int(shares.max() - shares.min()) <= 1


def test_random_differs_between_neurons_and_seeds() -> None:
    weight, alive = problem(6, 24, 1, 1.1, 0)
    one, other = (Random()(weight, alive, 2, generator(seed)) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one, Random()(weight, alive, 2, generator(0)))


def test_feature_keeps_inputs_together_that_the_layer_uses_alike() -> None:
    pattern = torch.tensor([0, 1, 2, 3]).repeat(6)  # four kinds of inputs, interleaved
    weight = torch.randint(-9, 9, (8, 4), generator=generator()).float()[:, pattern].unsqueeze(-1)
    child = Feature()(weight, torch.ones(8, 24, dtype=torch.bool), 2, generator(2))[0]
    for kind in range(4):
        assert len(child[pattern == kind].unique()) == 1


@pytest.mark.parametrize("groups", [[4], [6], [5, 1], [9, 2, 1], [3, 3, 8], [16]])
@pytest.mark.parametrize("alpha", [2, 3, 5])
def test_children_of_feature_differ_by_one_input_at_most(groups: list[int], alpha: int) -> None:
    """Inputs that are all alike are one cluster, which one child would own alone."""
    columns = [float(number + 1) * torch.ones(3, size) for number, size in enumerate(groups)]
    weight = torch.cat(columns, dim=1).unsqueeze(-1)
    child = Feature()(weight, torch.ones(3, weight.shape[1], dtype=torch.bool), alpha, generator())
    counts = torch.stack([child[0].bincount(minlength=alpha), child[-1].bincount(minlength=alpha)])
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 5), st.integers(1, 6), seeds)
def test_semi_structured_gives_two_of_every_four_both_ways(neurons: int, runs: int, seed: int) -> None:
    weight, alive = problem(neurons, 4 * runs, 1, 1.1, seed)
    masks = children_masks(SemiStructured(), weight, alive, 2, generator(seed))
    assert (masks.view(neurons, 2, runs, 4).sum(-1) == 2).all()
    assert (masks.sum(1) == 1).all()


@pytest.mark.parametrize(("alpha", "inputs"), [(3, 8), (2, 6)])
def test_semi_structured_names_what_it_needs(alpha: int, inputs: int) -> None:
    with pytest.raises(ValueError, match=f"needs alpha=2 and a multiple of 4 inputs, found alpha={alpha} and {inputs}"):
        SemiStructured()(*problem(2, inputs, 1, 1.1, 0), alpha, generator())


@given(sizes, st.integers(2, 5), seeds)
def test_overlapping_has_the_count_of_a_partition(size: tuple, alpha: int, seed: int) -> None:
    weight, alive = problem(*size)
    masks = children_masks(resolve_partition("overlapping"), weight, alive, alpha, generator(seed))
    assert not (masks & ~alive.unsqueeze(1)).any()
    shares = masks.sum(2)
    assert int((shares - (alive.sum(1, keepdim=True).float() / alpha)).abs().ceil().max()) <= 1


def test_overlapping_does_overlap() -> None:
    weight, alive = problem(4, 24, 1, 1.1, 0)
    shared = children_masks(resolve_partition("overlapping"), weight, alive, 2, generator()).sum(1)
    assert {0, 1, 2} == set(shared.unique().tolist())


@given(st.lists(st.integers(1, 4), min_size=2, max_size=8), seeds, st.data())
def test_clauses_stay_whole_and_are_assigned_evenly(lengths: list[int], seed: int, data: st.DataObject) -> None:
    inputs = sum(lengths)
    order = torch.randperm(inputs, generator=generator(seed)).split(lengths)
    clauses = [clause.tolist() for clause in order]
    alpha = data.draw(st.integers(2, len(clauses)))
    weight, alive = problem(3, inputs, 1, 1.1, seed)
    child = Clause(clauses)(weight, alive, alpha, generator(seed))
    assert (child == child[0]).all()
    owners = [child[0, clause].unique().tolist() for clause in clauses]
    assert all(len(owner) == 1 for owner in owners)
    assigned = torch.tensor([owner[0] for owner in owners]).bincount(minlength=alpha)
    assert int(assigned.max() - assigned.min()) <= 1


@pytest.mark.parametrize(
    ("clauses", "alpha", "message"),
    [
        ([[0, 1], [1, 2, 3]], 2, "overlap: input 1 is in 2 of them"),
        ([[0, 1], [3]], 2, "miss 1 of 4 inputs, the first is 2"),
        ([[0, 1], [2, 3, 9]], 2, "name input 9, but the layer has inputs 0 to 3"),
        ([[0, -1], [1, 2, 3]], 2, "name input -1, but the layer has inputs 0 to 3"),
        ([[0, 1], [2, 3]], 3, "2 clauses cannot go to alpha=3 children; use a smaller alpha"),
        ([[0.5, 1], [2, 3]], 2, "hold float64 numbers; name inputs by integers, 0 to 3"),
    ],
)
def test_clauses_that_are_no_partition_are_named(clauses: list, alpha: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clause(clauses)(*problem(2, 4, 1, 1.1, 0), alpha, generator())


@pytest.mark.parametrize("partition", [Clause(), Clause([]), resolve_partition("clause")])
def test_clauses_are_needed_at_the_call(partition: Clause) -> None:
    with pytest.raises(ValueError, match="has no clauses: give `clauses`, lists of input indices, one for each"):
        partition(*problem(2, 4, 1, 1.1, 0), 2, generator())


def test_an_empty_clause_is_refused() -> None:
    with pytest.raises(ValueError, match="`clauses` has to hold non-empty lists of input indices"):
        Clause([[0], []])


@pytest.mark.parametrize(("name", "nearest"), [("randon", "random"), ("semi-structured", "semi_structured")])
def test_unknown_names_get_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"Unknown partition '{name}'. Did you mean '{nearest}'\? Known: clause, .*"):
        resolve_partition(name)


def test_unknown_things_get_the_list() -> None:
    with pytest.raises(ValueError, match=r"a short name \(.*clause, .*contiguous, .*\) or a callable .*; found 7"):
        resolve_partition(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"such as fpe.partitions.Random\(\); found <class .*Random'>"):
        resolve_partition(Random)  # type: ignore[arg-type]


def test_a_taken_name_and_what_cannot_be_called_are_not_registered() -> None:
    with pytest.raises(ValueError, match="The partition 'shared' is registered already; choose another name"):
        register_partition("shared", Random())
    with pytest.raises(ValueError, match=r"A partition is a callable \(weight, alive, alpha, generator\), found 3"):
        register_partition("three", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown partition 'three'"):
        resolve_partition("three")


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (torch.zeros(2, 4), r"torch.float32 \(2, 4\)"),
        (torch.zeros(2, 4, dtype=torch.bool), r"torch.bool \(2, 4\)"),
        (torch.zeros(4, 2, dtype=torch.int64), r"torch.int64 \(4, 2\)"),
        (torch.full((2, 4), 2), r"torch.int64 \(2, 4\) with values 2 to 2"),
        (torch.full((2, 4), -1), r"torch.int64 \(2, 4\) with values -1 to -1"),
        (torch.zeros(0, dtype=torch.int64), r"torch.int64 \(0,\)"),
        ([[0, 1, 0, 1]] * 2, "list"),
    ],
)
def test_a_callable_that_returns_something_else_is_told(returned: object, found: str) -> None:
    with pytest.raises(ValueError, match=rf"has to return int64 \(2, 4\) .* or bool \(2, 2, 4\); found {found}"):
        children_masks(lambda *_: returned, *problem(2, 4, 1, 1.1, 0), 2, generator())  # type: ignore[arg-type,return-value]


def test_a_callable_of_ones_own_is_followed() -> None:
    weight, alive = problem(3, 8, 1, 0.8, 0)
    masks = children_masks(lambda w, a, alpha, g: torch.arange(8).expand(3, 8) // 4, weight, alive, 2, generator())
    assert torch.equal(masks[:, 0], alive & (torch.arange(8) < 4))
    assert torch.equal(masks[:, 1], alive & (torch.arange(8) >= 4))


def test_inputs_are_assigned_as_a_stable_argsort_would() -> None:
    rng = generator()
    for rows, inputs in ((0, 3), (3, 0), (1, 1), (7, 40), (5, 2**19)):  # the last one is assigned in two parts
        keys = (torch.rand(rows, inputs, generator=rng) * 16).floor() / 16  # many ties
        alive = torch.rand(rows, inputs, generator=rng) > 0.3
        order = keys.masked_fill(~alive, torch.inf).argsort(dim=-1, stable=True)
        assert torch.equal(balanced(keys, alive, 3).gather(-1, order), (torch.arange(inputs) % 3).expand(rows, inputs))
