"""Cosine similarity of neurons: its mean over pairs, its rule for empty rows, its blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional import pairwise_cosine_similarity

from fpe_lightning.interference import (
    MeanAbsoluteCosineSimilarity,
    MeanCosineSimilarity,
    mean_absolute_cosine_similarity,
    mean_cosine_similarity,
    similarity,
)

BOTH = [mean_cosine_similarity, mean_absolute_cosine_similarity]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(weight: Tensor) -> Tensor:
    """The cosine of each distinct pair of rows, by torchmetrics."""
    first, second = torch.triu_indices(len(weight), len(weight), offset=1)
    return pairwise_cosine_similarity(weight, weight)[first, second]


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 1000))
def test_equals_the_mean_over_distinct_pairs(neurons: int, inputs: int, seed: int):
    weight = normal(neurons, inputs, seed=seed)
    torch.testing.assert_close(mean_cosine_similarity(weight), cosines(weight).mean())
    torch.testing.assert_close(mean_absolute_cosine_similarity(weight), cosines(weight).abs().mean())


def test_the_blocks_cover_every_pair_once(monkeypatch: pytest.MonkeyPatch):
    weight = normal(11, 4)
    whole = mean_absolute_cosine_similarity(weight)
    monkeypatch.setattr(similarity, "_ROWS_AT_ONCE", 3)
    torch.testing.assert_close(mean_absolute_cosine_similarity(weight), whole)


def test_opposite_neurons_cancel_in_the_signed_mean_only():
    weight = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(mean_cosine_similarity(weight), torch.tensor(-1 / 3))
    torch.testing.assert_close(mean_absolute_cosine_similarity(weight), torch.tensor(1.0))


@pytest.mark.parametrize("measure", BOTH)
def test_pairs_with_an_all_zero_row_are_left_out(measure):
    weight = normal(5, 4)
    torch.testing.assert_close(measure(torch.cat([weight, torch.zeros(3, 4)])), measure(weight))


@pytest.mark.parametrize("measure", BOTH)
@pytest.mark.parametrize("weight", [torch.ones(1, 3), torch.zeros(4, 3), torch.tensor([[1.0, 2.0], [0.0, 0.0]])])
def test_without_a_pair_there_is_no_mean(measure, weight: Tensor):
    assert measure(weight).isnan()


@pytest.mark.parametrize("measure", BOTH)
def test_tiny_rows_count_like_any_other(measure):
    weight = normal(4, 3)
    shrunk = weight * torch.tensor([[1.0], [1e-200], [1.0], [1e-100]], dtype=torch.float64)
    torch.testing.assert_close(measure(shrunk), measure(weight))


@pytest.mark.parametrize("measure", BOTH)
def test_the_row_of_a_kernel_holds_all_its_taps(measure):
    kernel = normal(4, 3, 2, 2)
    assert torch.equal(measure(kernel), measure(kernel.flatten(1)))


@pytest.mark.parametrize("measure", BOTH)
def test_dtypes_nan_and_gradients(measure):
    weight = normal(4, 6)
    assert measure(weight.half()).dtype == torch.float32
    assert torch.autograd.gradcheck(measure, (weight.clone().requires_grad_(),))
    weight[0, 1] = float("nan")
    assert measure(weight).isnan()


@pytest.mark.parametrize("measure", BOTH)
def test_refuses_what_is_no_weight(measure):
    with pytest.raises(TypeError, match=r"floating-point weight.* found torch.bool"):
        measure(torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"found shape \(2,\): pass the weight of a linear or convolutional layer"):
        measure(torch.ones(2))


@pytest.mark.parametrize(
    ("metric", "magnitude"), [(MeanCosineSimilarity(), lambda x: x), (MeanAbsoluteCosineSimilarity(), torch.abs)]
)
def test_metrics_pool_the_pairs_of_all_weights(metric, magnitude):
    first, second = normal(4, 6), normal(7, 3)
    metric.update(first)
    metric.update(second)
    pairs = magnitude(torch.cat([cosines(first), cosines(second)]))
    torch.testing.assert_close(metric.compute(), pairs.mean().float())
    metric.reset()
    torch.testing.assert_close(metric(second), magnitude(cosines(second)).mean().float())
