"""Least-squares lines through the settings of a study, and how much they explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000


@dataclass(frozen=True)
class Fit:
    """A line by least squares.

    Attributes:
        slope: Of the line.
        intercept: Of the line.
        r2: Share of the variance that it explains, R^2.
        low: Lower end of the 95 % interval of R^2.
        high: Upper end.
        rank: Spearman's rank correlation, which an outlier cannot make.
        count: Number of points.
    """

    slope: float
    intercept: float
    r2: float
    low: float
    high: float
    rank: float
    count: int


def fit(x: Sequence[float], y: Sequence[float], clusters: Sequence[object], seed: int = 0) -> Fit | None:
    """Fit a line, with a bootstrap interval of R^2 over clusters of points.

    Whole clusters are drawn with replacement, as points of one cluster are not independent. The interval is that of the
    correlation (percentiles), squared: it begins at zero where that of the correlation holds zero.

    Args:
        x: The explaining numbers.
        y: The explained numbers, as many.
        clusters: The cluster of each point.
        seed: Of the bootstrap.

    Returns:
        The line; None for fewer than three clusters, or where nothing varies.

    Example:
        >>> found = fit([0, 1, 2, 3], [1, 3, 5, 7], "abcd")
        >>> found.slope, found.intercept, found.r2, found.rank
        (2.0, 1.0, 1.0, 1.0)
        >>> fit([1, 1, 1], [0, 1, 2], "abc") is None
        True
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = list(dict.fromkeys(clusters))
    if len(known) < 3 or not (np.ptp(xs) > 0 and np.ptp(ys) > 0):
        return None
    line = stats.linregress(xs, ys)
    number = np.array([known.index(cluster) for cluster in clusters])
    drawn = np.random.default_rng(seed).multinomial(len(known), np.full(len(known), 1 / len(known)), RESAMPLES)
    found = _correlations(xs, ys, drawn[:, number].astype(float))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    ends = sorted((float(low) ** 2, float(high) ** 2))
    return Fit(
        slope=float(line.slope),
        intercept=float(line.intercept),
        r2=float(line.rvalue) ** 2,
        low=0.0 if low <= 0 <= high else ends[0],
        high=ends[1],
        rank=float(stats.spearmanr(xs, ys).statistic),
        count=len(xs),
    )


def _correlations(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation under each row of weights ``(draws, n)``; NaN where a draw has no spread."""
    weights = weights / weights.sum(1, keepdims=True)
    dx, dy = x - (weights @ x)[:, None], y - (weights @ y)[:, None]
    spread = np.sqrt((weights * dx**2).sum(1) * (weights * dy**2).sum(1))
    enough = spread > 1e-12 * np.ptp(x) * np.ptp(y)
    return np.where(enough, (weights * dx * dy).sum(1) / np.where(enough, spread, 1), np.nan)
