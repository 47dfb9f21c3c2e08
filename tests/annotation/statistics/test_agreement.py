import math

import krippendorff
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annotation.statistics.inter_rater import (
    intraclass_correlation,
    krippendorff_alpha,
    largest_block,
    rater_agreement,
    srcc_pairwise,
    srcc_with_others,
)

GAP = math.nan


def table(rows: list[list[float]]) -> pd.DataFrame:
    """Scores [items, raters]."""
    return pd.DataFrame(rows, columns=[f"rater {n}" for n in range(len(rows[0]))], dtype=float)


def opinions(scores: pd.DataFrame) -> pd.DataFrame:
    long = scores.rename_axis(index="item_id", columns="annotator").stack().dropna()
    return long.rename("score").reset_index()


SHROUT_AND_FLEISS = table(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)
"""Shrout and Fleiss, 1979, table 2: four judges rate six targets."""

KRIPPENDORFF = table(
    [
        [1, 1, GAP, 1],
        [2, 2, 3, 2],
        [3, 3, 3, 3],
        [3, 3, 3, 3],
        [2, 2, 2, 2],
        [1, 2, 3, 4],
        [4, 4, 4, 4],
        [1, 1, 2, 1],
        [2, 2, 2, 2],
        [GAP, 5, 5, 5],
        [GAP, GAP, 1, 1],
        [GAP, 3, GAP, GAP],
    ]
)
"""Krippendorff, "Computing Krippendorff's alpha-reliability", 2011, example C (twelve units)."""


class TestAlpha:
    def test_published_example(self) -> None:
        found = krippendorff_alpha(opinions(KRIPPENDORFF))
        assert found.value == pytest.approx(0.815, abs=5e-4)
        assert (found.items, found.raters) == (11, 4)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.lists(st.none() | st.integers(10, 50).map(lambda x: x / 10), min_size=4, max_size=4),
            min_size=2,
            max_size=12,
        )
    )
    def test_the_reference_package_finds_the_same(self, rows: list[list[float | None]]) -> None:
        scores = table([[GAP if score is None else score for score in row] for row in rows])
        found = krippendorff_alpha(opinions(scores))
        shared = scores[scores.notna().sum(axis=1) > 1]
        if len(shared) < 2 or np.unique(shared.to_numpy()[shared.notna().to_numpy()]).size < 2:
            assert math.isnan(found.value) and found.reason
        else:
            expected = krippendorff.alpha(shared.to_numpy().T, level_of_measurement="ordinal")
            assert found.value == pytest.approx(expected, abs=1e-9)

    def test_rounding_errors_are_no_disagreement(self) -> None:
        found = krippendorff_alpha(opinions(table([[3.3, 1.1 * 3], [1.0, 1.0], [5.0, 5.0]])))
        assert found.value == 1


class TestIntraclassCorrelation:
    def test_published_example(self) -> None:
        single, mean = intraclass_correlation(SHROUT_AND_FLEISS)
        assert (single.value, mean.value) == pytest.approx((0.29, 0.62), abs=0.005)
        # The intervals as the R package psych gives them for this example.
        assert (single.low, single.high) == pytest.approx((0.019, 0.76), abs=0.005)
        assert (mean.low, mean.high) == pytest.approx((0.071, 0.93), abs=0.005)
        assert (single.items, single.raters) == (6, 4)

    def test_raters_who_never_vary_have_no_coefficient_but_a_reason(self) -> None:
        single, mean = intraclass_correlation(pd.DataFrame({"a": [3.0] * 5, "b": [4.0] * 5}))
        assert math.isnan(single.value) and math.isnan(mean.value)
        assert "one image unlike another" in single.reason

    def test_missing_cells_leave_the_part_that_the_same_raters_have_scored(self) -> None:
        more = [[GAP, 3, GAP, 4], [2, GAP, GAP, GAP], [1, 2, 3, GAP]]
        with_gaps = pd.concat([SHROUT_AND_FLEISS, table(more)], ignore_index=True)
        with_gaps["newcomer"] = [4, *[GAP] * 8]
        assert intraclass_correlation(with_gaps) == intraclass_correlation(SHROUT_AND_FLEISS)

    def test_who_has_scored_much_else_is_no_reason_to_give_common_images_up(self) -> None:
        together = [[item % 5, item % 4, item % 3, GAP] for item in range(20)]
        elsewhere = [[GAP, GAP, GAP, 3]] * 100
        few = [[1, 2, 3, 4]] * 2
        block = largest_block(table(together + elsewhere + few))
        assert block.shape == (22, 3)

    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(2, 5).flatmap(
            lambda raters: st.lists(
                st.lists(st.none() | st.integers(1, 5), min_size=raters, max_size=raters),
                min_size=1,
                max_size=15,
            )
        )
    )
    @example(rows=[[None, 4, None, None, 2]] * 3 + [[None, 5, None, None, 1]] * 2)
    def test_whatever_is_scored_there_is_a_coefficient_or_a_reason(
        self, rows: list[list[float | None]]
    ) -> None:
        scores = table([[GAP if score is None else score for score in row] for row in rows])
        assert largest_block(scores).notna().all(axis=None)
        found = rater_agreement(opinions(scores))
        for one in (found.alpha, found.single, found.mean, found.with_others, found.pairwise):
            assert bool(one.reason) == math.isnan(one.value)
            assert one.reason or -1 - 1e-9 <= one.value <= 1 + 1e-9
            assert math.isnan(one.low) or one.low - 1e-9 <= one.value <= one.high + 1e-9


class TestRankCorrelation:
    def test_by_hand(self) -> None:
        # a and b order five images alike, c the other way round.
        scores = table([[1, 1.5, 5], [2, 2.5, 4], [3, 3.5, 3], [4, 4.5, 2], [5, 5, 1]])
        assert srcc_pairwise(scores).value == pytest.approx((1 - 1 - 1) / 3)
        # The means of b and c are 3.25, 3.25, 3.25, 3.25 and 3; with a it is much the same.
        others = [(3.25, 3.25, 3.25, 3.25, 3.0), (3.0,) * 5, (1.25, 2.25, 3.25, 4.25, 5.0)]
        with_b_and_c = np.corrcoef([1, 2, 3, 4, 5], pd.Series(others[0]).rank())[0, 1]
        assert srcc_with_others(scores).value == pytest.approx((with_b_and_c - 1) / 2)
        assert srcc_pairwise(scores).raters == srcc_with_others(scores).items - 2 == 3

    def test_few_common_images_say_nothing(self) -> None:
        scores = table([[1, 2], [2, 3], [3, 4], [4, 5], [5, GAP]])
        found = rater_agreement(opinions(scores))
        assert math.isnan(found.pairwise.value) and math.isnan(found.single.value)
        assert "5 images" in found.pairwise.reason
        assert found.alpha.items == 4

    def test_who_gives_one_score_only_is_not_counted(self) -> None:
        scores = table([[item, item, 3] for item in (1, 2, 3, 4, 5)])
        assert srcc_pairwise(scores).value == pytest.approx(1)


@pytest.mark.parametrize("people", [[], ["only one"]])
def test_nobody_and_one_person_agree_with_nobody(people: list[str]) -> None:
    rows = [(item, name, float(item)) for item in range(1, 6) for name in people]
    found = rater_agreement(pd.DataFrame(rows, columns=["item_id", "annotator", "score"]))
    assert all(one.reason for one in (found.alpha, found.single, found.with_others, found.pairwise))
