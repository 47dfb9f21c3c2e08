"""Agreement between predicted and true scores, as image quality assessment reports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from m3agiqa.aspects import RATINGS, Rating

Scores = Sequence[float] | np.ndarray
Said = Sequence[Rating | None]
"""Rating words; None where a model's answer was none, which is never right."""


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


def accuracy(predicted: Said, true: Sequence[Rating]) -> float:
    """Share of equal rating words."""
    return float(np.mean([p == t for p, t in zip(predicted, true, strict=True)]))


def rough_accuracy(predicted: Said, true: Sequence[Rating]) -> float:
    """Share of rating words at most one class away (paper, Eq. 11)."""
    pairs = zip(predicted, true, strict=True)
    return float(np.mean([p is not None and abs(RATINGS.index(p) - RATINGS.index(t)) <= 1 for p, t in pairs]))


def precision_and_f1(
    predicted: Said, true: Sequence[Rating], average: Literal["macro", "weighted"]
) -> tuple[float, float]:
    """Mean precision and mean F1 over the words that occur on either side.

    "macro" counts every word alike, "weighted" by how often it is the true one. A word that was never
    predicted has precision 0.
    """
    pairs = list(zip(predicted, true, strict=True))
    precisions, f1s, weights = [], [], []
    for word in RATINGS:
        said, meant = sum(p is word for p, _ in pairs), sum(t is word for _, t in pairs)
        if said or meant:
            right = sum(p is t is word for p, t in pairs)
            precisions.append(right / said if said else 0.0)
            f1s.append(2 * right / (said + meant))
            weights.append(meant if average == "weighted" else 1)
    return float(np.average(precisions, weights=weights)), float(np.average(f1s, weights=weights))


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
