"""Intervals hold as many scores as they promise, and percentiles are shares of the training images."""

import json
from dataclasses import asdict
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3agiqa.aspects import MosScale
from m3agiqa.checkpoint.calibration import MIN_SOURCE_SIZE, Calibration, conformal_half_width

SCALE = MosScale(1, 5)
scores = st.floats(1, 5)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_new_scores_lie_inside_as_often_as_promised(level: float) -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        half_width = conformal_half_width(rng.laplace(0.1, 0.3, 60).tolist(), MosScale(-100, 100), level)
        shares.append(fmean(abs(rng.laplace(0.1, 0.3, 200)) <= half_width))
    assert level - 0.01 <= fmean(shares) <= level + 0.03


@given(st.lists(st.floats(-4, 4), max_size=40), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_a_higher_level_needs_a_wider_interval(errors: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert conformal_half_width(errors, SCALE, low) <= conformal_half_width(errors, SCALE, high)


def test_the_rank_is_that_of_finite_samples() -> None:
    errors = [number / 10 for number in range(-9, 0)]  # of 9: the 8th smallest
    assert conformal_half_width(errors, SCALE) == 0.8
    assert conformal_half_width(errors[:3], SCALE) == 4, "too few tell nothing"


@given(scores, st.floats(0, 10))
def test_an_interval_is_around_its_score_and_within_the_scale(mos: float, half_width: float) -> None:
    low, high = Calibration(half_width, 9, (1.0, 5.0), 2).interval(mos, SCALE)
    assert 1 <= low <= mos <= high <= 5


@given(st.lists(scores, min_size=1, max_size=30), scores, scores)
def test_percentiles_rise_from_0_to_100(training: list[float], one: float, other: float) -> None:
    calibration = Calibration.fitted([0.1] * 9, training, SCALE)
    low, high = sorted((one, other))
    assert 0 <= calibration.percentile(low) <= calibration.percentile(high) <= 100
    assert calibration.training_images == len(training)


def test_a_percentile_is_the_share_of_lower_scores() -> None:
    rng = np.random.default_rng(0)
    training = rng.normal(3, 0.6, 4000).clip(1, 5).round(1).tolist()
    calibration = Calibration.fitted([0.1] * 9, training, SCALE)
    for mos in (1.0, 2.05, 2.95, 3.35, 4.45):
        assert calibration.percentile(mos) == pytest.approx(100 * fmean(np.array(training) < mos), abs=1.5)
    assert (calibration.percentile(0.9), calibration.percentile(5.0)) == (0, 100)


def test_a_source_with_enough_images_has_an_interval_of_its_own() -> None:
    errors = [0.1] * MIN_SOURCE_SIZE + [2.0] * MIN_SOURCE_SIZE + [0.5] * 9
    sources = ["drawn"] * MIN_SOURCE_SIZE + [None] * MIN_SOURCE_SIZE + ["few"] * 9
    calibration = Calibration.fitted(errors, [3.0, 4.0], SCALE, sources)
    assert calibration.by_source == {"drawn": 0.1}
    assert calibration.interval(3, SCALE, "drawn") == pytest.approx((2.9, 3.1))
    assert calibration.interval(3, SCALE, "few") == calibration.interval(3, SCALE) == (1, 5)


@pytest.mark.parametrize("change", [{"half_width": float("nan")}, {"quantiles": (2, 1)}, {"quantiles": ()}])
def test_nonsense_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"half_width|quantiles"):
        Calibration(**{**asdict(Calibration(0.5, 9, (1, 5), 2)), **change})


def test_it_can_be_written_as_json() -> None:
    calibration = Calibration.fitted([0.1] * 9, [3.0, 4.0], SCALE)
    read = json.loads(json.dumps(asdict(calibration)))
    assert Calibration(**{**read, "quantiles": tuple(read["quantiles"])}) == calibration
