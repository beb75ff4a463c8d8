"""Feature capacity: its formula, its bounds, and what happens at the edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from fpe_lightning.interference import FeatureCapacity, feature_capacity


def by_definition(weight: Tensor) -> Tensor:
    """C_i = (w_i . w_i)^2 / sum_j (w_i . w_j)^2, one column at a time."""
    columns = weight.double().unbind(1)
    return torch.stack([(a @ a) ** 2 / sum((a @ b) ** 2 for b in columns) for a in columns])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(shapes, st.integers(0, 1000))
def test_equals_the_definition_for_wide_and_tall_weights(shape: tuple[int, int], seed: int):
    weight = normal(*shape, seed=seed).double()
    torch.testing.assert_close(feature_capacity(weight), by_definition(weight))


@given(shapes, st.integers(0, 1000))
def test_lies_in_the_unit_interval_and_sums_to_at_most_the_number_of_neurons(shape: tuple[int, int], seed: int):
    capacity = feature_capacity(normal(*shape, seed=seed))
    assert (capacity > 0).all()
    assert (capacity <= 1).all()
    assert capacity.sum() <= shape[0] + 1e-4


@given(st.integers(0, 1000))
def test_rows_of_zeros_change_nothing_though_they_change_the_side_of_the_gram_matrix(seed: int):
    weight = normal(3, 8, seed=seed)
    padded = torch.cat([weight, torch.zeros(20, 8)])
    torch.testing.assert_close(feature_capacity(padded), feature_capacity(weight))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_does_not_depend_on_the_scale_of_the_weight(scale: float):
    weight = normal(4, 6)
    torch.testing.assert_close(feature_capacity(weight * scale), feature_capacity(weight))


def test_orthogonal_columns_have_capacity_one_and_equal_columns_share_it():
    assert torch.equal(feature_capacity(torch.diag(torch.tensor([3.0, -1.0, 0.5]))), torch.ones(3))
    torch.testing.assert_close(feature_capacity(torch.ones(2, 5)), torch.full((5,), 0.2))


def test_one_child_for_each_input_gives_every_feature_a_neuron_of_its_own():
    weight = normal(4, 6)
    mask = one_hot(torch.arange(6).expand(4, 6)).transpose(1, 2).flatten(0, 1)
    assert feature_capacity(weight).max() < 1
    torch.testing.assert_close(feature_capacity(weight.repeat_interleave(6, 0) * mask), torch.ones(6))


def test_an_all_zero_column_has_capacity_zero_and_leaves_the_others_alone():
    weight = normal(4, 6)
    with_zero = torch.cat([weight, torch.zeros(4, 1)], dim=1)
    torch.testing.assert_close(feature_capacity(with_zero), torch.cat([feature_capacity(weight), torch.zeros(1)]))
    assert torch.equal(feature_capacity(torch.zeros(3, 2)), torch.zeros(2))


def test_a_column_that_shrinks_beside_others_tends_to_the_capacity_of_an_all_zero_one():
    weight = normal(3, 5)
    weight[:, 0] *= 1e-6
    assert feature_capacity(weight)[0] < 1e-10


def test_the_column_of_a_kernel_holds_all_taps_of_all_neurons():
    kernel = normal(4, 3, 2, 5)
    columns = torch.stack([kernel[:, i].flatten() for i in range(3)], dim=1)
    torch.testing.assert_close(feature_capacity(kernel), feature_capacity(columns))


def test_half_precision_is_answered_in_single_and_double_in_double():
    weight = normal(4, 6)
    assert feature_capacity(weight.bfloat16()).dtype == torch.float32
    assert feature_capacity(weight.double()).dtype == torch.float64
    torch.testing.assert_close(feature_capacity(weight.bfloat16()), feature_capacity(weight.bfloat16().float()))


def test_a_diverged_weight_is_seen():
    weight = normal(2, 3)
    weight[0, 1] = float("nan")
    assert feature_capacity(weight).isnan().all()


def test_is_differentiable_beside_an_all_zero_column():
    weight = normal(3, 5).double()
    weight[:, 2] = 0
    assert torch.autograd.gradcheck(lambda w: feature_capacity(w)[[0, 1, 3, 4]], (weight.requires_grad_(),))
    feature_capacity(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_leaves_the_weight_as_it_was():
    weight = normal(3, 5)
    copy = weight.clone()
    feature_capacity(weight)
    assert torch.equal(weight, copy)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (torch.ones(3, 2, dtype=torch.int64), TypeError, r"floating-point weight.* found torch.int64"),
        ([[1.0]], TypeError, "floating-point weight.* found list"),
        (torch.ones(3), ValueError, r"non-empty weight of shape .* found shape \(3,\)"),
        (torch.ones(0, 3), ValueError, r"non-empty weight of shape .* found shape \(0, 3\)"),
    ],
)
def test_refuses_what_is_no_weight(weight: Tensor, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        feature_capacity(weight)


def test_metric_pools_the_features_of_all_weights():
    first, second = normal(4, 6), normal(3, 10)
    every = torch.cat([feature_capacity(first), feature_capacity(second)])
    mean, each = FeatureCapacity(), FeatureCapacity(reduction="none")
    for metric in (mean, each):
        metric.update(first)
        metric.update(second)
    torch.testing.assert_close(mean.compute(), every.mean())
    assert torch.equal(each.compute(), every)
    mean.reset()
    torch.testing.assert_close(mean(first), feature_capacity(first).mean())


def test_metric_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match="`reduction` must be 'mean' or 'none', but found 'sum'"):
        FeatureCapacity(reduction="sum")  # type: ignore[arg-type]
