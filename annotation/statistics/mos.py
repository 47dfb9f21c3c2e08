"""Mean opinion scores without the raters' habits: ITU-T P.910, and ITU-R BT.500's screening.

A rater's score of an item is modelled as `score = MOS[item] + bias[rater] + noise`, where the noise has
the rater's own standard deviation, their inconsistency. MOS, biases and inconsistencies are found by
alternating projection (ITU-T P.910, 10/2023; Li, Bampis, Krasula, Janowski and Katsavounidis, "A simple
model for subject behavior in subjective experiments", 2020): each in turn is estimated from the others, and
a rater weighs by 1 / inconsistency². Before, raters who err in both directions are screened out
(ITU-R BT.500, section on the screening of observers).

The Recommendations think of a laboratory where twenty people rate everything. Here two may rate an image,
and a newcomer three images, so five things are added, which change next to nothing in a laboratory:

- Images that one person has rated say nothing of that person's bias and inconsistency.
- Who shares fewer than `MIN_FOR_BIAS` images with others is taken for an unbiased rater, and who shares
  fewer than `MIN_FOR_INCONSISTENCY` for one of the typical inconsistency.
- MOS follows each score by its weight, so scores lie nearer to it than to the truth; inconsistencies are
  taken with the degrees of freedom that this leaves. Otherwise the MOS of images with three raters would
  come to follow one of them, whose noise then seems to be none, and be worse than the raw mean.
- Nobody's inconsistency counts as less than half the typical one.
- Biases are relative to those raters only with whom one is connected through common images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph

from m3agiqa.aspects import COMMON_SCALE, MosScale

MIN_FOR_BIAS = 5
"""From fewer images, a bias is known no better than by supposing none."""
MIN_FOR_INCONSISTENCY = 20
"""From fewer, who seems consistent may just be lucky, and would count for too much."""

_NORMAL_QUANTILE_975 = 1.96
_MAX_ITERATIONS = 500
_CONVERGED_WITHIN = 1e-8  # points of MOS
_MIN_VARIANCE = 1e-8  # of a rater, so that perfect agreement does not divide by zero


@dataclass(frozen=True)
class MeanOpinion:
    """What people say of one aspect of an item, in the points of their scores."""

    item: int
    mos: float
    """Without the raters' biases, the consistent ones counting for more."""
    low: float
    high: float
    """95 % interval of `mos`; NaN where nothing tells by how much raters differ."""
    raters: int
    """People whose scores are in `mos`, without those screened out."""
    raw_mean: float
    """Of all scores as they were given."""


@dataclass(frozen=True)
class Subject:
    """A rater's habits; NaN where too few of their images have been rated by others."""

    bias: float
    """Points by which they score higher than the others."""
    inconsistency: float
    """Standard deviation of their scores, their bias set aside."""
    outlying: bool
    """Screened out: their scores are in no MOS."""


@dataclass(frozen=True)
class Scaling:
    """Mean opinions by item, raters by name."""

    opinions: dict[int, MeanOpinion]
    subjects: dict[str, Subject]


@dataclass(frozen=True)
class Votes:
    """Scores [N] with the numbers of their items and raters [N], counted from 0 without gaps."""

    item: np.ndarray
    rater: np.ndarray
    score: np.ndarray

    def of(self, keep: np.ndarray) -> Votes:
        """Those where `keep` [N] is true; items and raters keep their numbers."""
        return Votes(self.item[keep], self.rater[keep], self.score[keep])


@dataclass(frozen=True)
class Projection:
    """What alternating projection finds."""

    mos: np.ndarray
    """[items]"""
    error: np.ndarray
    """[items]: standard error of `mos`, or NaN."""
    bias: np.ndarray
    """[raters]: 0 where not known."""
    inconsistency: np.ndarray
    """[raters]: the typical one where not known."""
    shared: np.ndarray
    """[raters]: how many images they share with others."""


def mean_opinions(opinions: pd.DataFrame) -> dict[int, MeanOpinion]:
    """MOS by item, from opinions on one aspect (columns item_id, annotator, score).

    Items all of whose raters were screened out are left out. Where there are columns low and high, the
    scale of each score, MOS and interval stay on it; scores on several scales need `on_one_scale` first.
    """
    return scale_opinions(opinions).opinions


def on_one_scale(opinions: pd.DataFrame, scale: MosScale = COMMON_SCALE) -> pd.DataFrame:
    """The opinions with scores, low and high brought onto one scale; models may have several."""
    low, high = opinions["low"], opinions["high"]
    other = (low != scale.low) | (high != scale.high)  # the rest stays as it is, to the last digit
    unit = (opinions["score"] - low) / (high - low)
    score = opinions["score"].mask(other, scale.low + unit * (scale.high - scale.low))
    return opinions.assign(score=score, low=scale.low, high=scale.high)


def scale_opinions(opinions: pd.DataFrame) -> Scaling:
    """`mean_opinions`, and the raters with their biases and inconsistencies."""
    items, item_ids = pd.factorize(opinions["item_id"], sort=True)
    raters, names = pd.factorize(opinions["annotator"], sort=True)
    votes = Votes(items, raters, opinions["score"].to_numpy(float))
    if not len(votes.score):
        return Scaling({}, {})
    outlying = outlying_raters(votes)
    kept = votes.of(~outlying[votes.rater])
    counted = np.unique(kept.item)
    position = np.searchsorted(counted, kept.item)
    projection = alternating_projection(Votes(position, kept.rater, kept.score), len(names))

    low, high = (
        projection.mos - _NORMAL_QUANTILE_975 * projection.error,
        projection.mos + _NORMAL_QUANTILE_975 * projection.error,
    )
    mos = projection.mos
    if {"low", "high"} <= set(opinions):
        ends = opinions.groupby(items)[["low", "high"]].first().to_numpy(float)[counted]
        mos, low, high = (np.clip(value, ends[:, 0], ends[:, 1]) for value in (mos, low, high))
    raw = _means(votes.item, votes.score, len(item_ids))
    count = np.bincount(position)
    rows = zip(item_ids[counted], mos, low, high, count, raw[counted], strict=True)
    means = {
        int(item): MeanOpinion(int(item), float(m), float(a), float(b), int(n), float(r))
        for item, m, a, b, n, r in rows
    }

    levels = np.full(len(item_ids), math.nan)
    levels[counted] = projection.mos
    subjects = {
        str(name): _subject(votes, levels, projection, number, bool(outlying[number]))
        for number, name in enumerate(names)
    }
    return Scaling(means, subjects)


def _subject(
    votes: Votes, levels: np.ndarray, projection: Projection, number: int, outlying: bool
) -> Subject:
    own = votes.of(votes.rater == number)
    if outlying:  # as seen from the others' MOS, in which they have no part
        differences = (own.score - levels[own.item])[~np.isnan(levels[own.item])]
        if not len(differences):
            return Subject(math.nan, math.nan, True)
        return Subject(float(np.mean(differences)), float(np.std(differences)), True)
    shared = projection.shared[number]
    return Subject(
        bias=float(projection.bias[number]) if shared >= MIN_FOR_BIAS else math.nan,
        inconsistency=float(projection.inconsistency[number])
        if shared >= MIN_FOR_INCONSISTENCY
        else math.nan,
        outlying=False,
    )


def outlying_raters(votes: Votes) -> np.ndarray:
    """Raters [raters] whom BT.500 rejects: far from the mean in over 5 % of their images, on both sides.

    Far is two standard deviations where an image's scores look normal (kurtosis from 2 to 4), else the
    square root of 20. By this rule no score can be far among fewer than six, so nobody is rejected then;
    nor is anybody where all would be.
    """
    items, raters = votes.item.max() + 1, votes.rater.max() + 1
    count = np.bincount(votes.item, minlength=items)
    difference = votes.score - _means(votes.item, votes.score, items)[votes.item]
    second = _means(votes.item, difference**2, items)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = _means(votes.item, difference**4, items) / second**2
        deviation = np.sqrt(second * count / (count - 1))
    far = np.where((kurtosis >= 2) & (kurtosis <= 4), 2.0, math.sqrt(20)) * deviation
    usable = (count >= 6) & (deviation > 1e-9)  # less is rounding
    counted = usable[votes.item]
    above = np.bincount(votes.rater[counted & (difference >= far[votes.item])], minlength=raters)
    below = np.bincount(votes.rater[counted & (difference <= -far[votes.item])], minlength=raters)
    rated = np.bincount(votes.rater[(count >= 6)[votes.item]], minlength=raters)
    both = above + below
    rejected = (both > 0.05 * rated) & (np.abs(above - below) < 0.3 * both)
    return rejected & ~rejected.all()


def alternating_projection(
    votes: Votes, raters: int | None = None, to_the_letter: bool = False
) -> Projection:
    """MOS, biases and inconsistencies of votes in which every item has at least one.

    `to_the_letter` divides by the number of votes, as P.910 does, not by degrees of freedom.
    """
    item, rater, score = votes.item, votes.rater, votes.score
    raters = raters or rater.max() + 1
    group = _connected(item, rater, raters)
    count = np.bincount(item)[item]
    common = votes.of(count > 1)
    shared = np.bincount(common.rater, minlength=raters)
    biased, own = shared >= MIN_FOR_BIAS, shared >= MIN_FOR_INCONSISTENCY

    def biases(mos: np.ndarray) -> np.ndarray:
        bias = np.where(biased, _means(common.rater, common.score - mos[common.item], raters), 0.0)
        counted = np.where(biased, shared, 0)
        centre = np.bincount(group, bias * counted) / np.maximum(np.bincount(group, counted), 1)
        return np.where(biased, bias - centre[group], 0.0)

    def inconsistencies(mos: np.ndarray, bias: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, float]:
        noise = common.score - mos[common.item] - bias[common.rater]
        if not len(noise):
            return np.full(raters, math.nan), math.nan
        freedom = np.ones(len(noise)) if to_the_letter else 1 - share[count > 1]
        centred = noise - _means(common.rater, noise, raters)[common.rater]
        with np.errstate(invalid="ignore"):
            deviations = np.sqrt(
                np.bincount(common.rater, centred**2, raters) / np.bincount(common.rater, freedom, raters)
            )
        typical = np.median(deviations[own]) if own.any() else np.sqrt(np.sum(noise**2) / np.sum(freedom))
        return np.where(own, deviations, typical), float(typical)

    share = 1 / count
    mos = np.bincount(item, share * score)
    bias = biases(mos)
    for _ in range(_MAX_ITERATIONS):
        before = mos
        inconsistency, typical = inconsistencies(mos, bias, share)
        deviation = np.maximum(inconsistency, typical / 2)
        weight = 1 / np.maximum(deviation**2, _MIN_VARIANCE) if len(common.score) else np.ones(raters)
        share = weight[rater] / np.bincount(item, weight[rater])[item]
        mos = np.bincount(item, share * (score - bias[rater]))
        bias = biases(mos)
        if np.abs(mos - before).max() < _CONVERGED_WITHIN:
            break
    error = np.sqrt(np.bincount(item, (share * inconsistency[rater]) ** 2))
    return Projection(mos, error, bias, inconsistency, shared)


def _means(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """Mean of the values in each group; NaN for an empty one."""
    with np.errstate(invalid="ignore"):
        return np.bincount(group, weights=values, minlength=groups) / np.bincount(group, minlength=groups)


def _connected(item: np.ndarray, rater: np.ndarray, raters: int) -> np.ndarray:
    """For each rater, the number of the group of raters that common items tie together."""
    size = raters + item.max() + 1
    edges = sparse.coo_array((np.ones(len(item)), (rater, raters + item)), shape=(size, size))
    return csgraph.connected_components(edges, directed=False)[1][:raters]
