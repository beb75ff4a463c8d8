"""Entropy over classes, selectivity and top samples: values known by hand, silent neurons, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from studies.selectivity import (
    class_entropy,
    class_means,
    class_selectivity,
    excess_entropy,
    top_samples,
)

LABELS = torch.arange(12) % 4


def test_entropy_of_neurons_whose_distribution_is_known() -> None:
    own, all_alike = (LABELS == 2).float(), torch.ones(12)
    two = (LABELS < 2).float()
    skewed = torch.tensor([4.0, 2.0, 1.0, 1.0]).repeat(3)  # shares 1/2, 1/4, 1/8, 1/8
    found = class_entropy(torch.stack([own, all_alike, two, skewed], 1), LABELS)
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.tensor([0.0, 2.0, 1.0, 1.75], dtype=torch.float64), atol=1e-12)


def test_excess_entropy_of_neurons_whose_distribution_is_known() -> None:
    labels = torch.arange(24) % 8
    own, three = (labels == 2).float(), (labels < 3).float()
    skewed = torch.tensor([2.0, 1.0, 1.0, 0, 0, 0, 0, 0]).repeat(3)  # shares 1/2, 1/4, 1/4
    found = excess_entropy(torch.stack([own, three, skewed, -own], 1), labels)
    assert torch.allclose(found[:3], torch.tensor([0.0, math.log2(3), 1.5], dtype=torch.float64), atol=1e-12)
    assert found[3].isnan()  # it stands out for no class


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 5.0), (1e-20, 0.0), (1e20, 0.0), (0.5, -3.0)])
def test_neither_offset_nor_scale_changes_the_excess_entropy(scale: float, offset: float) -> None:
    active = torch.randn(120, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(120) % 5
    expected = excess_entropy(active, labels)
    assert torch.allclose(excess_entropy(active * scale + offset, labels), expected, atol=1e-9)
    assert not torch.allclose(class_entropy(active.abs() + 5, labels), class_entropy(active.abs(), labels), atol=0.01)


def test_excess_entropy_is_the_entropy_of_a_neuron_that_is_mostly_silent() -> None:
    active = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) * (LABELS == 1).unsqueeze(1)
    assert torch.equal(excess_entropy(active, LABELS), class_entropy(active, LABELS))
    assert excess_entropy(torch.zeros(12, 1), LABELS).isnan().all()
    assert excess_entropy(torch.full((12, 1), 0.1), LABELS).isnan().all()  # level, whatever rounding says
    with pytest.raises(ValueError, match="`activations` have to be finite, found nan"):
        excess_entropy(torch.full((12, 1), math.nan), LABELS)


def test_selectivity_of_neurons_whose_class_means_are_known() -> None:
    skewed = torch.tensor([4.0, 2.0, 1.0, 1.0]).repeat(3)
    found = class_selectivity(torch.stack([(LABELS == 0).float(), torch.ones(12), skewed], 1), LABELS)
    assert found.tolist() == pytest.approx([1.0, 0.0, (4 - 4 / 3) / (4 + 4 / 3)])


def test_frequent_classes_do_not_count_more() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    assert class_entropy(torch.ones(7, 1), labels).tolist() == [1.0]
    assert class_means(torch.ones(7, 1), labels).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_an_activation_does_not_matter(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(12, 5, generator=generator)
    assert torch.allclose(class_entropy(active * scale, LABELS), class_entropy(active, LABELS), atol=1e-5)
    assert torch.allclose(class_selectivity(active * scale, LABELS), class_selectivity(active, LABELS), atol=1e-5)


def test_random_neurons_lie_between_the_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    active = torch.randn(200, 50, generator=generator).relu()
    labels = torch.arange(200) % 7
    entropy, selectivity = class_entropy(active, labels), class_selectivity(active, labels)
    assert ((entropy > 0) & (entropy < math.log2(7))).all()
    assert ((selectivity > 0) & (selectivity < 1)).all()


def test_a_silent_neuron_has_no_entropy_and_no_selectivity() -> None:
    active = torch.stack([torch.zeros(12), torch.ones(12)], 1)
    assert class_entropy(active, LABELS).isnan().tolist() == [True, False]
    assert class_selectivity(active, LABELS).isnan().tolist() == [True, False]


def test_top_samples_come_strongest_first_and_ties_by_number() -> None:
    active = torch.tensor([[1.0, 0.0, 0.0], [5.0, 2.0, 0.0], [5.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    assert top_samples(active, 3).tolist() == [[3, 1, 2], [1, -1, -1], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("active", "labels", "error", "message"),
    [
        (torch.ones(12, 2, dtype=torch.int64), LABELS, TypeError, "floating point, found torch.int64"),
        (torch.ones(12), LABELS, ValueError, r"shape \(n, neurons\), found \(12,\)"),
        (torch.ones(0, 2), LABELS[:0], ValueError, r"found \(0, 2\)"),
        (-torch.ones(12, 2), LABELS, ValueError, "not negative, found -1: pass the output of a ReLU"),
        (torch.full((12, 2), math.nan), LABELS, ValueError, "finite and not negative, found nan"),
        (torch.full((12, 2), math.inf), LABELS, ValueError, "finite and not negative, found inf"),
        (torch.ones(12, 2), LABELS.float(), TypeError, "int64 class numbers, found torch.float32"),
        (torch.ones(12, 2), LABELS[:5], ValueError, r"each of the 12 samples, found shape \(5,\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    active: torch.Tensor, labels: torch.Tensor, error: type[Exception], message: str
) -> None:
    for measure in (class_entropy, class_selectivity):
        with pytest.raises(error, match=message):
            measure(active, labels)


def test_selectivity_needs_two_classes_and_top_samples_a_possible_count() -> None:
    with pytest.raises(ValueError, match="all samples are of one class"):
        class_selectivity(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"between 1 and the number of samples, 3, found {count}"):
            top_samples(torch.ones(3, 1), count)
