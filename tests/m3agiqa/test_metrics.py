"""Agreement metrics against their definitions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3agiqa.aspects import RATINGS, Rating
from m3agiqa.metrics import (
    accuracy,
    bootstrap_interval,
    krcc,
    plcc,
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


def test_a_constant_side_has_no_correlation():
    assert np.isnan(srcc([1, 1, 1], [1, 2, 3]))


def test_rmse_is_in_units_of_the_scale():
    assert rmse([1.0, 5.0], [2.0, 5.0]) == pytest.approx(0.5**0.5)


@given(st.lists(st.tuples(st.sampled_from(RATINGS), st.sampled_from(RATINGS)), min_size=1))
def test_rough_accuracy_forgives_one_class(drawn):
    said, meant = zip(*drawn, strict=True)
    gaps = [abs(RATINGS.index(a) - RATINGS.index(b)) for a, b in drawn]
    assert rough_accuracy(said, meant) == pytest.approx(np.mean([gap <= 1 for gap in gaps]))
    assert accuracy(said, meant) <= rough_accuracy(said, meant)


def test_rough_accuracy_counts_neighbours_only():
    assert rough_accuracy([Rating.BAD, Rating.BAD], [Rating.POOR, Rating.FAIR]) == 0.5


def test_the_interval_holds_the_estimate_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    true = rng.normal(size=800)
    predicted = true + rng.normal(size=800)
    low, high = bootstrap_interval(srcc, predicted, true)
    few_low, few_high = bootstrap_interval(srcc, predicted[:50], true[:50])
    assert low < srcc(predicted, true) < high
    assert high - low < few_high - few_low


words = st.sampled_from(RATINGS)


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
