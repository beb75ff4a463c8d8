"""Lines by least squares, and how sure they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from studies.fits import fit


def noisy(slope: float, n: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return x, slope * x + generator.normal(size=n)


def test_the_line_is_that_of_scipy() -> None:
    x, y = noisy(1.0)
    found, wanted = fit(x, y, range(30)), stats.linregress(x, y)
    assert found is not None
    assert (found.slope, found.intercept, found.count) == (
        pytest.approx(wanted.slope),
        pytest.approx(wanted.intercept),
        30,
    )
    assert found.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert found.rank == pytest.approx(stats.spearmanr(x, y).statistic)


def test_the_interval_is_near_the_analytic_one_where_points_are_independent() -> None:
    x, y = noisy(1.5, n=200)
    found = fit(x, y, range(200))
    assert found is not None
    wanted = stats.pearsonr(x, y).confidence_interval(0.95)
    assert found.low == pytest.approx(wanted.low**2, abs=0.04)
    assert found.high == pytest.approx(wanted.high**2, abs=0.04)
    assert found.low < found.r2 < found.high


def test_the_interval_holds_zero_where_nothing_is_explained_and_a_sign_does_not_matter() -> None:
    x, y = noisy(0.0)
    nothing, falling, rising = fit(x, y, range(30)), fit(*noisy(-5.0), range(30)), fit(*noisy(5.0), range(30))
    assert nothing is not None
    assert falling is not None
    assert rising is not None
    assert nothing.low == 0 < nothing.r2 < nothing.high < 0.6
    assert falling.slope < 0 < rising.slope
    assert 0.7 < falling.low < falling.r2 < falling.high < 1


def test_copies_of_points_in_one_cluster_do_not_make_it_surer() -> None:
    x, y = noisy(1.0, n=12)
    alone, copied = fit(x, y, range(12)), fit(np.repeat(x, 5), np.repeat(y, 5), np.repeat(range(12), 5))
    assert alone is not None
    assert copied is not None
    assert (copied.low, copied.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    apart = fit(np.repeat(x, 5), np.repeat(y, 5), range(60))
    assert apart is not None
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)


def test_two_clusters_or_one_value_make_no_line() -> None:
    assert fit([1, 2, 3, 4], [1, 2, 3, 5], "aabb") is None
    assert fit([1, 2, 3], [1, 1, 1], "abc") is None
