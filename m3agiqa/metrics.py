"""Agreement between predicted and true scores, as image quality assessment reports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from m3agiqa.aspects import RATINGS, Rating

Scores = Sequence[float] | np.ndarray


def srcc(predicted: Scores, true: Scores) -> float:
    """Spearman's rank-order correlation, -1 to 1; NaN if either side is constant."""
    return float(stats.spearmanr(predicted, true).statistic)


def plcc(predicted: Scores, true: Scores) -> float:
    """Pearson's linear correlation, -1 to 1, without a logistic fit."""
    return float(stats.pearsonr(predicted, true).statistic)


def krcc(predicted: Scores, true: Scores) -> float:
    """Kendall's tau-b, -1 to 1."""
    return float(stats.kendalltau(predicted, true).statistic)


def rmse(predicted: Scores, true: Scores) -> float:
    """Root mean square error, in units of the MOS scale."""
    return float(np.sqrt(np.mean((np.asarray(predicted) - np.asarray(true)) ** 2)))


def accuracy(predicted: Sequence[Rating], true: Sequence[Rating]) -> float:
    """Share of equal rating words."""
    return float(np.mean([p == t for p, t in zip(predicted, true, strict=True)]))


def rough_accuracy(predicted: Sequence[Rating], true: Sequence[Rating]) -> float:
    """Share of rating words at most one class away (paper, Eq. 11)."""
    pairs = zip(predicted, true, strict=True)
    return float(np.mean([abs(RATINGS.index(p) - RATINGS.index(t)) <= 1 for p, t in pairs]))


def bootstrap_interval(
    metric: Callable[[Scores, Scores], float],
    predicted: Scores,
    true: Scores,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a metric over resampled images."""
    predicted, true = np.asarray(predicted), np.asarray(true)
    rng = np.random.default_rng(seed)
    picks = (rng.integers(0, len(true), len(true)) for _ in range(draws))
    values = [metric(predicted[pick], true[pick]) for pick in picks]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
