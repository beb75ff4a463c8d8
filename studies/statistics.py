"""Means, standard errors and paired differences over seeds; and durations in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        error: Its standard error.
        low: Lower end of the 95 % interval (Student's t).
        high: Upper end.
        count: Number of seeds.
    """

    mean: float
    error: float
    low: float
    high: float
    count: int


def estimate(values: Mapping[int, float]) -> Estimate:
    """Mean, standard error and 95 % interval of values by seed; one value has no interval (NaN).

    Example:
        >>> found = estimate({0: 1.0, 1: 3.0})
        >>> found.mean, round(found.error, 3), round(found.low, 2), round(found.high, 2)
        (2.0, 1.0, -10.71, 14.71)
    """
    sample = np.asarray(list(values.values()), dtype=float)
    count = len(sample)
    mean = float(sample.mean()) if count else float("nan")
    error = float(sample.std(ddof=1) / count**0.5) if count > 1 else float("nan")
    reach = float(stats.t.ppf(0.975, count - 1)) * error if count > 1 else float("nan")
    return Estimate(mean, error, mean - reach, mean + reach, count)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """The difference to a baseline, seed by seed, over the seeds that both have.

    Example:
        >>> paired({0: 0.9, 1: 0.8, 2: 0.7}, {0: 0.8, 1: 0.7}).count
        2
    """
    return estimate({seed: value - baseline[seed] for seed, value in values.items() if seed in baseline})


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it.

    Example:
        >>> in_words(90.0), in_words(9000.0)
        ('90.0 seconds', '2.5 hours')
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
