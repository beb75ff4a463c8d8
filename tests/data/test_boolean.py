"""The formula's samples: exactly half of each kind, each kind uniform, all decided by the seed."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fpe_lightning.data.boolean import dnf_task, sample_assignments


def true_clauses(inputs: Tensor, groups: Any) -> Tensor:
    return torch.stack([(inputs[:, list(group)] > 0).all(dim=1) for group in groups]).sum(dim=0)


@given(clauses=st.integers(1, 5), literals=st.integers(1, 4), spare=st.integers(0, 3), seed=st.integers(0, 99))
def test_targets_are_the_truth_and_half_are_true(clauses: int, literals: int, spare: int, seed: int) -> None:
    task = dnf_task(clauses, literals, clauses * literals + spare, train=64, val=32, test=31, seed=seed)
    members = [member for group in task.groups for member in group]
    assert len(set(members)) == clauses * literals
    for (inputs, targets), positive in zip((task.train, task.val, task.test), (32, 16, 16), strict=True):
        assert torch.equal(true_clauses(inputs, task.groups) > 0, targets)
        assert int(targets.sum()) == positive
        assert set(inputs.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("wanted", [True, False])
def test_every_assignment_is_equally_likely(wanted: bool) -> None:
    members = torch.tensor([[3, 0], [1, 5]])  # 2 clauses over 6 inputs, 2 of which do not matter
    everything = torch.tensor(list(product((False, True), repeat=6)))
    possible = everything[(true_clauses(everything.int(), members.tolist()) > 0) == wanted]

    n = 200 * len(possible)
    drawn = sample_assignments(members, 6, torch.full((n,), wanted), "uniform", torch.Generator().manual_seed(0))
    code = 2 ** torch.arange(6)
    counts = (drawn.long() @ code).bincount(minlength=64)[possible.long() @ code]
    assert int(counts.sum()) == n
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_one_clause_makes_exactly_one_clause_true() -> None:
    inputs, targets = dnf_task(literals=2, inputs=16, positives="one_clause").train
    groups = dnf_task(literals=2, inputs=16, positives="one_clause").groups
    assert torch.equal(true_clauses(inputs, groups), targets.long())


def test_bits_and_signs_code_the_same_samples() -> None:
    bits, signs = (dnf_task(coding=coding).train[0] for coding in ("bits", "signs"))
    assert torch.equal(bits * 2 - 1, signs)


def test_seed_decides_everything_and_parts_do_not_depend_on_each_other() -> None:
    torch.manual_seed(5)
    task, again, other = dnf_task(seed=1), dnf_task(seed=1), dnf_task(seed=2)
    assert task.groups == again.groups != other.groups
    assert torch.equal(task.train[0], again.train[0])
    assert not torch.equal(task.train[0], other.train[0])
    assert torch.equal(task.test[0], dnf_task(train=10, val=10, seed=1).test[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"clauses": 9}, r"9 disjoint clauses of 3 literals do not fit into 24 inputs"),
        ({"clauses": 0}, r"0 disjoint clauses"),
        ({"literals": 63, "clauses": 1, "inputs": 100}, r"1 to 62 literals"),
        ({"val": 1}, r"at least 2; found val=1"),
        ({"coding": "sign"}, r"`coding` has to be 'signs' \(-1/\+1\) or 'bits' \(0/1\), found 'sign'"),
        ({"positives": "one"}, r"`positives` has to be 'uniform' or 'one_clause', found 'one'"),
    ],
)
def test_impossible_tasks_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dnf_task(**kwargs)
