"""Agreement between predicted and true scores, as image quality assessment reports it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import scipy

from m3agiqa.aspects import RATING_WORDS, Rating

Scores = Sequence[float] | np.ndarray
Ratings = Sequence[Rating | None]
"""Rating words; None where a model's answer was none, which is never right."""


def srcc(predicted: Scores, true: Scores) -> float:
    """Spearman's rank-order correlation, -1 to 1; NaN if either side is constant."""
    return _correlation(scipy.stats.spearmanr, predicted, true)


def plcc(predicted: Scores, true: Scores) -> float:
    """Pearson's linear correlation, -1 to 1, without a logistic fit; NaN if either side is constant."""
    return _correlation(scipy.stats.pearsonr, predicted, true)


def plcc_logistic(predicted: Scores, true: Scores) -> float:
    """Pearson's correlation after the usual 4-parameter logistic mapping of the predictions, 0 to 1.

    The mapping is the VQEG's, fitted by least squares:
    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4)). It may fall as well as rise, so predictions that are
    upside down are not punished; SRCC tells. NaN if either side is constant; plain PLCC for no more images
    than parameters, and (its size) where no S fits better than a straight line, which is f's limit.
    """
    linear = plcc(predicted, true)
    if math.isnan(linear) or len(true) <= 4:
        return linear
    x, y = scipy.stats.zscore(np.asarray(predicted, float)), scipy.stats.zscore(np.asarray(true, float))

    def lost(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        # Given b3 and b4, the best b1 and b2 are a linear regression, which leaves 1 - r² of the variance.
        middle, width = parameters[0], math.exp(parameters[1])
        mapped = scipy.special.expit((x - middle) / width)
        slope = mapped * (mapped - 1) / width
        steps = np.stack([slope, slope * (x - middle)])  # derivatives by middle and log(width)
        mapped -= mapped.mean()
        covariance, variance = mapped @ y / len(x), mapped @ mapped / len(x)
        if variance == 0:
            return 1.0, np.zeros(2)
        share = covariance / variance
        gradient = 2 * share * (share * (steps @ mapped) - steps @ y) / len(x)
        return 1 - share * covariance, gradient

    bounds = [(x.min() - 3, x.max() + 3), (math.log(0.02), math.log(10))]  # from a step to a straight line
    starts = [(0.0, math.log(width)) for width in (0.1, 0.5, 3)]
    fits = [
        scipy.optimize.minimize(lost, start, jac=True, method="L-BFGS-B", bounds=bounds) for start in starts
    ]
    return max(abs(linear), math.sqrt(max(0.0, 1 - min(fit.fun for fit in fits))))


def krcc(predicted: Scores, true: Scores) -> float:
    """Kendall's tau-b, -1 to 1; NaN if either side is constant."""
    return _correlation(scipy.stats.kendalltau, predicted, true)


def _correlation(test: Callable[[Scores, Scores], Any], predicted: Scores, true: Scores) -> float:
    if min(len(predicted), len(true)) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return math.nan
    return float(test(predicted, true).statistic)


def rmse(predicted: Scores, true: Scores) -> float:
    """Root mean square error, in units of the MOS scale."""
    return float(np.sqrt(np.mean((np.asarray(predicted) - np.asarray(true)) ** 2)))


def accuracy(predicted: Ratings, true: Sequence[Rating]) -> float:
    """Share of equal rating words."""
    return float(np.mean([p == t for p, t in zip(predicted, true, strict=True)]))


def rough_accuracy(predicted: Ratings, true: Sequence[Rating]) -> float:
    """Share of rating words at most one class away (paper, Eq. 11)."""
    pairs = zip(predicted, true, strict=True)
    return float(
        np.mean([p is not None and abs(RATING_WORDS.index(p) - RATING_WORDS.index(t)) <= 1 for p, t in pairs])
    )


def precision_and_f1(
    predicted: Ratings, true: Sequence[Rating], average: Literal["macro", "weighted"]
) -> tuple[float, float]:
    """Mean precision and mean F1 over the words that occur on either side.

    "macro" counts every word alike, "weighted" by how often it is the true one. A word that was never
    predicted has precision 0.
    """
    pairs = list(zip(predicted, true, strict=True))
    precisions, f1s, weights = [], [], []
    for word in RATING_WORDS:
        n_predicted, n_true = sum(p is word for p, _ in pairs), sum(t is word for _, t in pairs)
        if n_predicted or n_true:
            right = sum(p is t is word for p, t in pairs)
            precisions.append(right / n_predicted if n_predicted else 0.0)
            f1s.append(2 * right / (n_predicted + n_true))
            weights.append(n_true if average == "weighted" else 1)
    return float(np.average(precisions, weights=weights)), float(np.average(f1s, weights=weights))


def confusion(predicted: Ratings, true: Sequence[Rating]) -> np.ndarray:
    """Counts [5, 5] in the order of RATING_WORDS: rows are true words, columns predicted ones.

    None has no column, so what a row lacks of its word's count are answers that were none.
    """
    counts = np.zeros((len(RATING_WORDS), len(RATING_WORDS)), dtype=int)
    for answer, truth in zip(predicted, true, strict=True):
        if answer is not None:
            counts[RATING_WORDS.index(truth), RATING_WORDS.index(answer)] += 1
    return counts


def bootstrap_interval(
    metric: Callable[[Scores, Scores], float],
    predicted: Scores,
    true: Scores,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a metric over resampled images; NaN where no resample has a value."""
    predicted, true = np.asarray(predicted), np.asarray(true)
    rng = np.random.default_rng(seed)
    picks = (rng.integers(0, len(true), len(true)) for _ in range(draws))
    values = [metric(predicted[pick], true[pick]) for pick in picks]
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
