"""Means, errors and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from studies.statistics import estimate, paired


def test_the_interval_is_that_of_a_t_test() -> None:
    values = dict(enumerate(np.random.default_rng(0).normal(size=24)))
    found = estimate(values)
    interval = stats.ttest_1samp(list(values.values()), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.error == pytest.approx(stats.sem(list(values.values())))


def test_differences_are_paired_by_seed_not_by_position() -> None:
    found = paired({2: 3.0, 1: 2.0, 9: 100.0}, {1: 1.0, 2: 2.0})
    assert (found.mean, found.error, found.count) == (1.0, 0.0, 2)


def test_one_seed_has_no_interval_and_none_has_no_mean() -> None:
    assert math.isnan(estimate({0: 1.0}).low)
    assert math.isnan(estimate({}).mean)
