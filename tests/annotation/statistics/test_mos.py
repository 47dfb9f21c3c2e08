import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from annotation.statistics.mos import (
    Votes,
    alternating_projection,
    mean_opinions,
    on_one_scale,
    outlying_raters,
    scale_opinions,
)

TABLE = pd.read_csv(Path(__file__).with_name("p910_appendix_vi.csv"), index_col="item")
"""The worked example of ITU-T P.910, Appendix VI (79 videos, 26 subjects, one vote missing) with its
results, as its reference code publishes it (github.com/Netflix/sureal, itut_p910_demo, Apache-2.0)."""


def frame(rows: list[tuple[int, str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["item_id", "annotator", "score"])


def everybody(scores: dict[str, list[float]]) -> pd.DataFrame:
    """Scores of items 0, 1, ... by rater; NaN for none."""
    rows = [(item, name, score) for name, row in scores.items() for item, score in enumerate(row)]
    return frame(rows).dropna()


def simulated(
    items: int, raters: int, each: int, bias: np.ndarray, inconsistency: np.ndarray, seed: int
) -> tuple[np.ndarray, pd.DataFrame]:
    """True levels, and the scores of `each` raters per item, drawn from all of them."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(1.5, 4.5, items)
    rows = [
        (item, f"rater {rater}", true[item] + bias[rater] + rng.normal(0, inconsistency[rater]))
        for item in range(items)
        for rater in rng.permutation(raters)[:each]
    ]
    return true, frame(rows)


class TestAlternatingProjection:
    def published(self) -> Votes:
        scores = TABLE.drop(index=["bias", "inconsistency"], columns="mos").to_numpy(float)
        item, rater = np.nonzero(~np.isnan(scores))
        return Votes(item, rater, scores[item, rater])

    def test_finds_what_p910_publishes_for_its_example(self) -> None:
        found = alternating_projection(self.published(), to_the_letter=True)
        # P.910 centres the biases over subjects, this over votes, of which one is missing.
        shift = found.bias.mean()
        assert abs(shift) < 2e-4
        assert found.mos + shift == pytest.approx(TABLE["mos"].dropna().to_numpy(), abs=2e-6)
        assert found.bias - shift == pytest.approx(TABLE.loc["bias"].dropna().to_numpy(), abs=2e-6)
        assert found.inconsistency == pytest.approx(TABLE.loc["inconsistency"].dropna().to_numpy(), abs=2e-6)

    def test_degrees_of_freedom_change_little_where_many_rate(self) -> None:
        found = alternating_projection(self.published())
        assert found.mos == pytest.approx(TABLE["mos"].dropna().to_numpy(), abs=0.01)
        assert found.inconsistency == pytest.approx(TABLE.loc["inconsistency"].dropna().to_numpy(), abs=0.02)

    def test_screening_by_bt500_agrees_with_a_count_by_hand(self) -> None:
        votes = self.published()
        above, below = np.zeros(26), np.zeros(26)
        for item in range(79):
            score, rater = votes.score[votes.item == item], votes.rater[votes.item == item]
            centred = score - score.mean()
            kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
            far = (2 if 2 <= kurtosis <= 4 else math.sqrt(20)) * score.std(ddof=1)
            above[rater[centred >= far]] += 1
            below[rater[centred <= -far]] += 1
        both = above + below
        expected = (both / 79 > 0.05) & (np.abs(above - below) / np.maximum(both, 1) < 0.3)
        assert expected.any()
        assert outlying_raters(votes).tolist() == expected.tolist()

    def test_three_raters_by_hand(self) -> None:
        # Twenty images; b scores a point lower, c a point higher than a, and nobody errs: MOS is a's score.
        level = [1.5 + 0.1 * item for item in range(20)]
        scores = {"a": level, "b": [x - 1 for x in level], "c": [x + 1 for x in level]}
        found = scale_opinions(everybody(scores))
        assert [found.opinions[item].mos for item in range(20)] == pytest.approx(level)
        assert {name: round(subject.bias, 6) for name, subject in found.subjects.items()} == {
            "a": 0,
            "b": -1,
            "c": 1,
        }
        assert all(subject.inconsistency < 1e-6 for subject in found.subjects.values())
        assert found.opinions[3].low == pytest.approx(found.opinions[3].high, abs=1e-3)

    def test_simulated_biases_and_inconsistencies_are_recovered(self) -> None:
        bias = np.array([-0.8, -0.3, 0.0, 0.2, 0.3, 0.6])
        inconsistency = np.array([0.3, 0.5, 0.4, 0.9, 0.6, 0.4])
        true, opinions = simulated(600, 6, 4, bias, inconsistency, seed=1)
        found = scale_opinions(opinions)
        subjects = [found.subjects[f"rater {rater}"] for rater in range(6)]
        assert [subject.bias for subject in subjects] == pytest.approx(bias, abs=0.1)
        order = np.argsort([subject.inconsistency for subject in subjects])
        assert order[-1] == 3 and order[-2] == 4
        mos = np.array([found.opinions[item].mos for item in range(600)])
        raw = np.array([found.opinions[item].raw_mean for item in range(600)])
        assert np.std(mos - true) < 0.85 * np.std(raw - true)

    @pytest.mark.parametrize(
        "items, raters, each", [(200, 6, 2), (200, 6, 3), (200, 6, 5), (60, 3, 2), (60, 20, 3)]
    )
    def test_intervals_hold_the_truth_nearly_as_often_as_they_say(
        self, items: int, raters: int, each: int
    ) -> None:
        inside = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            bias = rng.normal(0, 0.4, raters)
            inconsistency = rng.uniform(0.3, 0.9, raters)
            true, opinions = simulated(items, raters, each, bias - bias.mean(), inconsistency, seed)
            found = mean_opinions(opinions)
            inside += [found[item].low <= true[item] <= found[item].high for item in range(items)]
        assert 0.85 < np.mean(inside) < 0.98


class TestFewPeople:
    def test_one_rater_gives_their_own_scores_and_no_interval(self) -> None:
        found = scale_opinions(everybody({"a": [1.0, 2.5, 5.0]}))
        assert [found.opinions[item].mos for item in range(3)] == [1.0, 2.5, 5.0]
        assert all(
            math.isnan(opinion.low) and math.isnan(opinion.high) for opinion in found.opinions.values()
        )
        assert math.isnan(found.subjects["a"].bias)

    def test_nobody_gives_nothing(self) -> None:
        assert mean_opinions(frame([])) == {}

    def test_two_raters_of_one_image_meet_in_the_middle(self) -> None:
        opinion = mean_opinions(frame([(7, "a", 2.0), (7, "b", 4.0)]))[7]
        assert (opinion.item, opinion.mos, opinion.raw_mean, opinion.raters) == (7, 3.0, 3.0, 2)
        # One difference of two points: standard deviation √2, of a mean of two 1.
        assert (opinion.low, opinion.high) == pytest.approx((3 - 1.96, 3 + 1.96))

    def test_a_bias_known_from_common_images_is_taken_off_images_rated_alone(self) -> None:
        level = [2.0 + 0.1 * item for item in range(10)]
        scores = {"mild": [x + 0.5 for x in level] + [4.5], "strict": [x - 0.5 for x in level] + [math.nan]}
        alone = mean_opinions(everybody(scores))[10]
        assert alone.mos == pytest.approx(4.0)
        assert (alone.raters, alone.raw_mean) == (1, 4.5)

    def test_images_rated_alone_do_not_make_a_rater_look_consistent(self) -> None:
        rng = np.random.default_rng(0)
        true = rng.uniform(2, 4, 60)
        scores = {name: true + rng.normal(0, 0.5, 60) for name in "abc"}
        shared = scale_opinions(everybody(scores)).subjects["a"].inconsistency
        more = everybody(scores | {"a": [*scores["a"], *rng.uniform(2, 4, 300)]})
        assert scale_opinions(more).subjects["a"].inconsistency == pytest.approx(shared, rel=0.02)

    def test_a_newcomer_moves_nobody_else(self) -> None:
        _, opinions = simulated(60, 4, 3, np.zeros(4), np.full(4, 0.5), seed=2)
        before = scale_opinions(opinions)
        after = scale_opinions(pd.concat([opinions, frame([(0, "new", 5.0)])]))
        assert math.isnan(after.subjects["new"].bias)
        for item in range(1, 60):
            assert after.opinions[item].mos == pytest.approx(before.opinions[item].mos, abs=0.05)

    def test_people_without_common_images_do_not_shift_each_other(self) -> None:
        bias, noise = np.array([1.0, 0.5, 0.0, -0.2]), np.array([0.2, 0.9, 0.5, 0.3])
        _, some = simulated(60, 4, 2, bias, noise, seed=6)
        others = frame([(100 + item, name, 3.0) for item in range(20) for name in ("yes", "no")])
        found = mean_opinions(pd.concat([some, others]))
        assert [found[100 + item].mos for item in range(20)] == pytest.approx([3.0] * 20)

    def test_three_raters_alike_count_alike(self) -> None:
        # To P.910's letter, MOS would become the scores of one of them, and worse than the raw mean.
        true, opinions = simulated(200, 3, 3, np.zeros(3), np.full(3, 0.6), seed=3)
        found = mean_opinions(opinions)
        error = np.std([found[item].mos - true[item] for item in range(200)])
        assert error < 1.05 * np.std([found[item].raw_mean - true[item] for item in range(200)])


class TestScreening:
    def crowd(self) -> pd.DataFrame:
        rng = np.random.default_rng(4)
        true = rng.uniform(1.5, 4.5, 60)
        scores = {f"rater {rater:02}": true + rng.normal(0, 0.4, 60) for rater in range(24)}
        mild = true + 0.8 + rng.normal(0, 0.4, 60)
        return everybody(scores | {"chance": rng.uniform(1, 5, 60), "mild": mild})

    def test_who_answers_by_chance_is_screened_out_and_who_is_mild_is_not(self) -> None:
        found = scale_opinions(self.crowd())
        assert [name for name, subject in found.subjects.items() if subject.outlying] == ["chance"]
        assert found.subjects["chance"].inconsistency > 1
        assert {opinion.raters for opinion in found.opinions.values()} == {25}

    def test_who_is_screened_out_stays_in_the_raw_mean_alone(self) -> None:
        opinions = self.crowd()
        found = mean_opinions(opinions)[5]
        without = mean_opinions(opinions[opinions["annotator"] != "chance"])[5]
        assert found.raw_mean == pytest.approx(opinions[opinions["item_id"] == 5]["score"].mean())
        assert (found.mos, found.low, found.high) == pytest.approx((without.mos, without.low, without.high))

    def test_nobody_is_screened_out_where_everybody_would_be(self) -> None:
        # On each of 20 images another one of 20 people is far above the others, and another one far below.
        others = [1.0, -1.0] * 9
        scores = np.array([np.roll([2.6, -2.6, *others], image) for image in range(20)])
        image, rater = np.indices(scores.shape).reshape(2, -1)
        assert not outlying_raters(Votes(image, rater, scores.ravel())).any()
        one = rater != 0  # without the first, most of the others are still rejected
        assert outlying_raters(Votes(image[one], rater[one] - 1, scores.ravel()[one])).any()

    def test_images_that_only_they_rated_are_left_out(self) -> None:
        opinions = pd.concat([self.crowd(), frame([(99, "chance", 3.0)])])
        assert 99 not in mean_opinions(opinions)


class TestScales:
    def test_mos_stays_on_the_scale_where_it_is_known(self) -> None:
        level = [5.0] * 10 + [3.0] * 10
        opinions = everybody({"a": level, "b": [x - 1 for x in level]})
        assert mean_opinions(opinions)[0].mos == pytest.approx(4.5)
        opinions = pd.concat([opinions, frame([(20, "b", 5.0)])]).assign(low=1.0, high=5.0)
        alone = mean_opinions(opinions)[20]
        assert (alone.mos, alone.high) == (5.0, 5.0)

    def test_scores_on_several_scales_are_brought_onto_one(self) -> None:
        opinions = frame([(0, "a", 3.3), (0, "b", 75.0), (0, "c", 0.0)]).assign(
            low=[1.0, 0.0, 0.0], high=[5.0, 100.0, 100.0]
        )
        common = on_one_scale(opinions)
        assert common["score"].tolist() == [3.3, 4.0, 1.0]
        assert set(common["low"]) == {1} and set(common["high"]) == {5}


SOME_VOTES = st.dictionaries(
    st.tuples(st.integers(0, 11), st.sampled_from("abcdef")),
    st.integers(10, 50).map(lambda tenths: tenths / 10),
    min_size=1,
    max_size=72,
)


class TestWhateverIsVoted:
    @settings(max_examples=30, deadline=None)
    @given(SOME_VOTES)
    def test_every_image_gets_a_finite_mos_within_its_interval(
        self, votes: dict[tuple[int, str], float]
    ) -> None:
        opinions = frame([(item, name, score) for (item, name), score in votes.items()])
        found = mean_opinions(opinions.assign(low=1.0, high=5.0))
        for opinion in found.values():
            assert 1 <= opinion.mos <= 5
            assert math.isnan(opinion.low) or 1 <= opinion.low <= opinion.mos <= opinion.high <= 5

    @settings(max_examples=30, deadline=None)
    @given(SOME_VOTES, st.randoms())
    def test_order_and_names_do_not_matter(self, votes: dict[tuple[int, str], float], chance) -> None:
        rows = [(item, name, score) for (item, name), score in votes.items()]
        names = dict(zip("abcdef", chance.sample("uvwxyz", 6), strict=True))
        mixed = [(100 - item, names[name], score) for item, name, score in rows]
        chance.shuffle(mixed)
        one, other = mean_opinions(frame(rows)), mean_opinions(frame(mixed))
        assert {100 - item for item in one} == set(other)
        for item, opinion in one.items():
            assert other[100 - item].mos == pytest.approx(opinion.mos, abs=1e-5)

    @settings(max_examples=30, deadline=None)
    @given(SOME_VOTES, st.sampled_from("abcdef"))
    def test_a_constant_added_to_a_rater_of_everything_ends_up_in_their_bias(
        self, votes: dict[tuple[int, str], float], rater: str
    ) -> None:
        # Everybody rates the same dozen images, so that all biases are known.
        names = sorted({name for _, name in votes} | {"a", "b", rater})
        table = {name: [votes.get((item, name), 3.0) for item in range(12)] for name in names}
        shifted = table | {rater: [score + 1 for score in table[rater]]}
        one, other = scale_opinions(everybody(table)), scale_opinions(everybody(shifted))
        # BT.500 looks at scores as they were given.
        outlying = [subject.outlying for found in (one, other) for subject in found.subjects.values()]
        assume(not any(outlying))
        for item in range(12):
            rise = other.opinions[item].mos - one.opinions[item].mos
            assert rise == pytest.approx(1 / len(names), abs=1e-5)
        gained = other.subjects[rater].bias - one.subjects[rater].bias
        assert gained == pytest.approx(1 - 1 / len(names), abs=1e-5)


def test_many_votes_are_scaled_quickly() -> None:
    rng = np.random.default_rng(5)
    raters = np.concatenate([rng.permutation(40)[:3] for _ in range(5000)])
    opinions = pd.DataFrame(
        {
            "item_id": np.repeat(np.arange(5000), 3),
            "annotator": [f"rater {rater}" for rater in raters],
            "score": rng.uniform(1, 5, 15_000),
        }
    )
    began = time.process_time()
    assert len(mean_opinions(opinions)) == 5000
    assert time.process_time() - began < 5  # a quarter of a second is usual
