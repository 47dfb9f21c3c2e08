"""Agreement metrics against their definitions."""

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize

from m3agiqa.aspects import RATING_WORDS, Rating
from m3agiqa.metrics import (
    accuracy,
    bootstrap_interval,
    confusion,
    krcc,
    plcc,
    plcc_logistic,
    precision_and_f1,
    rmse,
    rough_accuracy,
    srcc,
)

score = st.integers(0, 40).map(lambda tenth: tenth / 10)  # coarse, so that there are ties
pairs = st.lists(st.tuples(score, score), min_size=3, max_size=25)


def _sides(drawn: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.array(drawn).T
    assume(np.ptp(one) > 0 and np.ptp(other) > 0)
    return one, other


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


@given(pairs)
def test_srcc_is_the_linear_correlation_of_ranks(drawn):
    one, other = _sides(drawn)
    assert srcc(one, other) == pytest.approx(np.corrcoef(_ranks(one), _ranks(other))[0, 1])
    assert srcc(np.exp(one), other) == pytest.approx(srcc(one, other)), "only the order counts"


@given(pairs)
def test_plcc_ignores_scale_and_offset(drawn):
    one, other = _sides(drawn)
    assert plcc(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert plcc(3 * one - 7, other) == pytest.approx(plcc(one, other))


@given(pairs)
def test_krcc_counts_concordant_pairs(drawn):
    one, other = _sides(drawn)
    signs = [
        (np.sign(a - b), np.sign(x - y)) for (a, x), (b, y) in combinations(zip(one, other, strict=True), 2)
    ]
    untied = np.prod([sum(s != 0 for s in side) for side in zip(*signs, strict=True)])
    assert krcc(one, other) == pytest.approx(sum(s * t for s, t in signs) / np.sqrt(untied))


def test_rmse_is_in_units_of_the_scale():
    assert rmse([1.0, 5.0], [2.0, 5.0]) == pytest.approx(0.5**0.5)


@given(st.lists(st.tuples(st.sampled_from(RATING_WORDS), st.sampled_from(RATING_WORDS)), min_size=1))
def test_rough_accuracy_forgives_one_class(drawn):
    said, meant = zip(*drawn, strict=True)
    gaps = [abs(RATING_WORDS.index(a) - RATING_WORDS.index(b)) for a, b in drawn]
    assert rough_accuracy(said, meant) == pytest.approx(np.mean([gap <= 1 for gap in gaps]))
    assert accuracy(said, meant) <= rough_accuracy(said, meant)


def test_the_interval_holds_the_estimate_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    true = rng.normal(size=800)
    predicted = true + rng.normal(size=800)
    low, high = bootstrap_interval(srcc, predicted, true)
    few_low, few_high = bootstrap_interval(srcc, predicted[:50], true[:50])
    assert low < srcc(predicted, true) < high
    assert high - low < few_high - few_low


words = st.sampled_from(RATING_WORDS)


@given(st.lists(st.tuples(words | st.none(), words), min_size=1))
def test_weighted_precision_and_f1_stay_between_none_and_all_right(drawn):
    said, meant = zip(*drawn, strict=True)
    for average in ("macro", "weighted"):
        found = precision_and_f1(said, meant, average)
        assert all(0 <= value <= 1 for value in found)
        assert precision_and_f1(meant, meant, average) == (1.0, 1.0)


def test_precision_and_f1_of_a_small_confusion_matrix():
    bad, fair = Rating.BAD, Rating.FAIR
    said, meant = [bad, bad, bad, fair], [bad, bad, fair, fair]
    assert precision_and_f1(said, meant, "macro") == pytest.approx(((2 / 3 + 1) / 2, (4 / 5 + 2 / 3) / 2))
    assert precision_and_f1([*said, None], [*meant, bad], "weighted") == pytest.approx(
        ((3 * 2 / 3 + 2 * 1) / 5, (3 * 4 / 6 + 2 * 2 / 3) / 5)
    )


def _s_curve(x: np.ndarray, width: float, middle: float, low: float, high: float) -> np.ndarray:
    return low + (high - low) / (1 + np.exp(-(x - middle) / width))


def _spread(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.5, 0.8, count)


widths, middles = st.floats(0.2, 3), st.floats(1.5, 3.5)
sizes, seeds = st.integers(8, 60), st.integers(0, 99)


@settings(max_examples=40)
@given(sizes, seeds, widths, middles, st.booleans())
def test_a_logistic_distortion_costs_no_logistic_plcc(count, seed, width, middle, falls):
    predicted = _spread(count, seed)
    true = _s_curve(predicted, width, middle, *((5, 0) if falls else (0, 5)))
    assert plcc_logistic(predicted, true) == pytest.approx(1, abs=1e-4)


@settings(max_examples=40)
@given(sizes, seeds, st.floats(0, 2))
def test_the_logistic_fit_is_never_worse_than_none_nor_moved_by_scale_and_offset(count, seed, noise):
    predicted = _spread(count, seed)
    true = predicted**3 + noise * _spread(count, seed + 100)
    found = plcc_logistic(predicted, true)
    assert plcc(predicted, true) - 1e-9 <= found <= 1
    assert plcc_logistic(20 * predicted - 3, 7 - 2 * true) == pytest.approx(found, abs=1e-3)


def test_the_logistic_fit_is_the_one_of_least_squares():
    predicted = _spread(200, 0)
    true = _s_curve(predicted, 0.2, 2.5, 1, 5) + 0.5 * _spread(200, 1)
    start = [true.max() - true.min(), true.min(), predicted.mean(), predicted.std()]
    fitted, _ = optimize.curve_fit(
        lambda x, height, low, middle, width: _s_curve(x, width, middle, low, low + height),
        predicted,
        true,
        p0=start,
        maxfev=5000,
    )
    height, low, middle, width = fitted
    mapped = _s_curve(predicted, width, middle, low, low + height)
    assert plcc_logistic(predicted, true) == pytest.approx(plcc(mapped, true), abs=1e-5)
    assert plcc_logistic(predicted, true) > plcc(predicted, true) + 0.01


def test_with_no_more_images_than_parameters_there_is_no_logistic_fit():
    predicted, true = [1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 3.0, 2.0]
    assert plcc_logistic(predicted, true) == plcc(predicted, true) < 0


@pytest.mark.parametrize("metric", [srcc, plcc, plcc_logistic, krcc])
@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ([2.0] * 8, range(8)),
        (range(8), [3.0] * 8),
        ([1.0], [2.0]),
        ([], []),
        ([math.nan, *range(7)], range(8)),
    ],
)
def test_without_variation_there_is_no_correlation_and_no_warning(metric, predicted, true):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(metric(list(predicted), list(true)))


def test_a_constant_prediction_has_no_interval():
    assert all(map(math.isnan, bootstrap_interval(srcc, [1.0] * 6, list(range(6)), draws=20)))


@given(st.lists(st.tuples(words | st.none(), words)))
def test_confusion_counts_every_answer_that_is_a_word(drawn):
    said, meant = zip(*drawn, strict=True) if drawn else ((), ())
    counts = confusion(said, meant)
    assert counts.shape == (5, 5)
    for row, word in enumerate(RATING_WORDS):
        assert counts[row].sum() == sum(t is word and p is not None for p, t in drawn)
        assert counts[:, row].sum() == said.count(word)
    assert np.trace(counts) == sum(p is t for p, t in drawn)
