"""Collisions and coverage of clauses: exact values by enumeration, and the rates of random partitions."""

from __future__ import annotations

from itertools import product
from math import comb

import pytest
import torch
from torch import Tensor

from fpe_lightning.interference import (
    ClauseCollisions,
    ClauseCoverage,
    clause_collisions,
    clause_coverage,
    whole_clauses,
)


def every_assignment(alpha: int, inputs: int) -> Tensor:
    """One neuron for each of the ``alpha ** inputs`` ways to send inputs to children."""
    return torch.tensor(list(product(range(alpha), repeat=inputs)))


def to_mask(assignment: Tensor, alpha: int) -> tuple[Tensor, Tensor]:
    """The mask of an assignment, row by row, and its parents."""
    rows = [row == child for row in assignment for child in range(alpha)]
    return torch.stack(rows), torch.arange(len(assignment)).repeat_interleave(alpha)


@pytest.mark.parametrize(("alpha", "k"), [(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (4, 2)])
def test_collision_rate_over_every_assignment_is_exact(alpha: int, k: int):
    groups = [list(range(k)), list(range(k, 2 * k))]
    rate = clause_collisions(every_assignment(alpha, 2 * k), groups)
    torch.testing.assert_close(rate, torch.tensor(alpha ** -(2.0 * k - 1)))


def test_clauses_that_share_an_input_collide_as_their_union_does():
    rate = clause_collisions(every_assignment(3, 3), [[0, 1], [1, 2]])
    torch.testing.assert_close(rate, torch.tensor(3.0**-2))


@pytest.mark.parametrize(("alpha", "k"), [(2, 2), (2, 3), (3, 2)])
def test_coverage_by_one_neuron_over_every_assignment_is_exact(alpha: int, k: int):
    coverages = [clause_coverage(row[None], [list(range(k))]) for row in every_assignment(alpha, k)]
    torch.testing.assert_close(torch.stack(coverages).mean(), torch.tensor(alpha ** -(k - 1.0)))


def test_coverage_by_two_neurons_over_every_assignment_is_exact():
    pairs = [torch.stack(pair) for pair in product(every_assignment(2, 2), repeat=2)]
    coverage = torch.stack([clause_coverage(pair, [[0, 1]]) for pair in pairs]).mean()
    torch.testing.assert_close(coverage, torch.tensor(1 - (1 - 1 / 2) ** 2))


GROUPS_OF_THREE = [list(range(start, start + 3)) for start in range(0, 24, 3)]


def test_random_assignments_collide_rarely_and_cover_nearly_everything():
    """8 clauses of 3 literals, alpha 2, layers of 8 neurons: 1 in 32 pairs collide, and coverage is 1 - (3/4)^8."""
    assignments = torch.randint(2, (4000, 24), generator=torch.Generator().manual_seed(0))
    layers = assignments.split(8)
    coverage = torch.stack([clause_coverage(layer, GROUPS_OF_THREE) for layer in layers]).mean().item()
    assert clause_collisions(assignments, GROUPS_OF_THREE).item() == pytest.approx(2**-5, rel=0.06)
    assert coverage == pytest.approx(1 - (1 - 2**-2) ** 8, rel=0.01)


@pytest.mark.parametrize("inputs", [24, 96])
def test_balanced_partitions_collide_less_often_still(inputs: int):
    generator = torch.Generator().manual_seed(0)
    assignments = torch.stack([torch.randperm(inputs, generator=generator) % 2 for _ in range(4000)])
    expected = 2 * comb(inputs - 6, inputs // 2 - 6) / comb(inputs, inputs // 2)
    assert clause_collisions(assignments, GROUPS_OF_THREE).item() == pytest.approx(expected, rel=0.08)
    assert expected < 2**-5


def test_an_assignment_stands_for_its_mask():
    assignment = torch.randint(3, (20, 9), generator=torch.Generator().manual_seed(1))
    mask, parents = to_mask(assignment, 3)
    groups = [[0, 1], [2], [3, 4]]
    assert torch.equal(whole_clauses(assignment, groups), whole_clauses(mask, groups))
    assert torch.equal(clause_collisions(assignment, groups), clause_collisions(mask, groups, parents))
    assert torch.equal(clause_coverage(assignment, groups), clause_coverage(mask, groups, parents))
    # Rows may stand in any order, and parents may carry any numbers.
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(2))
    shuffled = clause_collisions(mask[order], groups, 7 * parents[order] + 3)
    assert torch.equal(shuffled, clause_collisions(assignment, groups))


def test_a_dense_layer_covers_everything_and_everything_collides():
    mask = torch.ones(4, 6, dtype=torch.bool)
    assert clause_collisions(mask, [[0, 1], [2, 3], [4, 5]]) == 1
    assert clause_coverage(mask, [[0, 1], [2, 3], [4, 5]]) == 1


def test_a_clause_partition_covers_everything_and_keeps_clauses_apart():
    assignment = torch.tensor([[0, 0, 1, 1]]).expand(5, 4)
    assert clause_collisions(assignment, [[0, 1], [2, 3]]) == 0
    assert clause_coverage(assignment, [[0, 1], [2, 3]]) == 1


def test_one_pruned_literal_breaks_a_clause():
    mask, parents = to_mask(torch.tensor([[0, 0, 0, 0, 1]]), 2)
    assert clause_collisions(mask, [[0, 1], [2, 3]], parents) == 1
    mask[0, 3] = False
    assert clause_collisions(mask, [[0, 1], [2, 3]], parents) == 0
    assert clause_coverage(mask, [[0, 1], [2, 3]], parents) == 0.5


def test_overlapping_children_count_a_meeting_in_a_parent_once():
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert clause_collisions(mask, [[0, 1], [2, 3]], torch.tensor([0, 0])) == 1


GROUPS = [[0, 1], [2, 3]]
MASK = torch.ones(4, 4, dtype=torch.bool)


@pytest.mark.parametrize("measure", [clause_collisions, clause_coverage])
@pytest.mark.parametrize(
    ("structure", "groups", "parents", "error", "message"),
    [
        (MASK.float(), GROUPS, None, TypeError, "bool mask or an int64 assignment, but found torch.float32"),
        ([[0]], GROUPS, None, TypeError, "bool mask or an int64 assignment, but found list"),
        (MASK[0], GROUPS, None, ValueError, r"shape \(rows, inputs\), but found \(4,\)"),
        (-MASK.long(), GROUPS, None, ValueError, "Child numbers start at 0, but the assignment holds -1"),
        (MASK.long(), GROUPS, torch.arange(4), ValueError, "rows are the parents: omit it"),
        (MASK, GROUPS, torch.arange(3), ValueError, r"each of the 4 rows of the mask, but found torch.int64 of .*3"),
        (MASK, GROUPS, torch.ones(4), ValueError, "`parents` must be int64 .* found torch.float32"),
        (MASK, [[0], []], None, ValueError, "Clause 1 of `groups` is empty"),
        (MASK, [[0], [1, 4]], None, ValueError, r"Clause 1 .* inputs \[1, 4\], but the layer has the inputs 0 to 3"),
        (MASK, [[-1], [1]], None, ValueError, "Clause 0 of `groups` names the inputs"),
        (MASK, [], None, ValueError, "at least (one|two) clause"),
    ],
)
def test_refuses_what_does_not_fit(measure, structure, groups, parents, error, message):
    with pytest.raises(error, match=message):
        measure(structure, groups, parents)


def test_a_collision_needs_two_clauses():
    with pytest.raises(ValueError, match="at least two clauses, but `groups` holds 1"):
        clause_collisions(MASK, [[0]])


def test_metrics_pool_all_layers():
    groups = [[0, 1], [2, 3]]
    first, second = torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 1]])
    collisions, coverage = ClauseCollisions(groups), ClauseCoverage(groups)
    for metric in (collisions, coverage):
        metric.update(first)
        metric.update(*to_mask(second, 2))
    assert collisions.compute() == 0.25  # one of four neurons
    assert coverage.compute() == 1.0
    assert torch.equal(collisions(second), torch.tensor(0.0))
    assert ClauseCollisions.higher_is_better is False
    assert ClauseCoverage.higher_is_better is True
