import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3agiqa import Aspect, MosScale, Rating
from m3agiqa.aspects import RATING_WORDS, aspects_text

finite = st.floats(-1e6, 1e6)


@st.composite
def scales(draw: st.DrawFn) -> MosScale:
    low, high = sorted((draw(finite), draw(finite)))
    assume(high - low > 1e-3)
    return MosScale(low, high)


def test_aspects_are_listed_as_people_do() -> None:
    assert aspects_text(Aspect) == "quality, correspondence and authenticity"
    assert aspects_text(list(Aspect)[:2], "or") == "quality or correspondence"
    assert aspects_text([Aspect.QUALITY]) == "quality" and aspects_text([]) == ""


@given(scales(), finite)
def test_clamped_value_lies_within_the_scale(scale: MosScale, mos: float) -> None:
    clamped = scale.clamp(mos)
    assert scale.low <= clamped <= scale.high
    assert clamped == mos or not scale.low <= mos <= scale.high


@given(scales(), finite)
def test_unit_roundtrip(scale: MosScale, mos: float) -> None:
    unit = scale.to_unit(mos)
    assert 0 <= unit <= 1
    assert math.isclose(scale.from_unit(unit), scale.clamp(mos), rel_tol=1e-9, abs_tol=1e-6)


@given(scales(), finite, finite)
def test_rating_never_falls_when_the_mos_rises(scale: MosScale, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert RATING_WORDS.index(scale.rating(low)) <= RATING_WORDS.index(scale.rating(high))


def test_rating_splits_the_scale_into_five_equal_ranges() -> None:
    scale = MosScale(0, 100)
    starts = {0: "bad", 20: "poor", 40: "fair", 60: "good", 80: "excellent"}
    assert {mos: scale.rating(mos) for mos in starts} == starts
    assert scale.rating(19.9) is Rating.BAD
    assert scale.rating(100) is Rating.EXCELLENT
    assert scale.rating(-5) is Rating.BAD


@pytest.mark.parametrize("low, high", [(1, 1), (5, 1), (math.nan, 5), (0, math.inf)])
def test_impossible_scales_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError):
        MosScale(low, high)


def test_only_correspondence_needs_a_prompt() -> None:
    assert [aspect for aspect in Aspect if aspect.needs_prompt] == [Aspect.CORRESPONDENCE]
