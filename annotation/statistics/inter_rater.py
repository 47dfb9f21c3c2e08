"""How far raters agree on one aspect: Krippendorff's alpha, intraclass correlation, SRCC.

Each takes opinions with the columns item_id, annotator and score, one row for an item and annotator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import scipy

from m3agiqa.metrics import srcc

MIN_ITEMS = 5
"""Fewer common images make a coefficient, but not one that says anything."""


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of agreement, 1 at best, and what it rests on."""

    value: float
    """NaN where there is too little to tell; `reason` says what."""
    items: int
    raters: int
    low: float = math.nan
    """95 % interval, where the coefficient has one."""
    high: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class RaterAgreement:
    """All coefficients of one aspect."""

    alpha: Coefficient
    """Krippendorff's, for ordinal scores: 0 is chance, 1 is full agreement."""
    single: Coefficient
    """ICC(2,1): how far one rater can be relied upon."""
    mean: Coefficient
    """ICC(2,k): how far the mean of as many raters can be."""
    with_others: Coefficient
    """Mean over raters of the SRCC between their scores and the means of all others'."""
    pairwise: Coefficient
    """Mean SRCC over pairs of raters."""


def rater_agreement(opinions: pd.DataFrame) -> RaterAgreement:
    """All coefficients of opinions on one aspect."""
    table = _table(opinions)
    single, mean = intraclass_correlation(table)
    return RaterAgreement(
        krippendorff_alpha(opinions), single, mean, srcc_with_others(table), srcc_pairwise(table)
    )


def krippendorff_alpha(opinions: pd.DataFrame) -> Coefficient:
    """Krippendorff's alpha for ordinal scores; missing ones are allowed.

    The ordinal distance of two values is the squared number of scores that lie between them (the ends by
    half), which is the squared difference of their mid-ranks. So alpha is 1 - (variance of ranks within
    items) / (variance of all ranks), and needs no table of values by values, however fine the scores are.
    """
    scores = opinions["score"].round(3)  # 3.3 and 3.3000000000000003 are one value
    raters_of = opinions.groupby("item_id")["score"].transform("size")
    shared = opinions[raters_of > 1]
    items, raters = shared["item_id"].nunique(), shared["annotator"].nunique()
    if items < 2:
        return Coefficient(math.nan, items, raters, reason="No two images have been scored by two people.")
    ranks = pd.Series(scipy.stats.rankdata(scores[shared.index]), shared.index)
    total = ranks.var()
    if total == 0:
        return Coefficient(math.nan, items, raters, reason="All scores are the same, so nothing can differ.")
    within = ranks.groupby(shared["item_id"]).agg(["var", "size"])
    disagreement = np.average(within["var"], weights=within["size"]) / total
    return Coefficient(float(1 - disagreement), items, raters)


def intraclass_correlation(table: pd.DataFrame) -> tuple[Coefficient, Coefficient]:
    """ICC(2,1) and ICC(2,k) of scores [items, raters]: two-way random effects, absolute agreement.

    Shrout and Fleiss, "Intraclass correlations: uses in assessing rater reliability", 1979; intervals after
    McGraw and Wong, 1996. The analysis of variance wants every rater to have rated every item, so where cells
    are missing it rests on a complete part of the table: `largest_block`.
    """
    block = largest_block(table)
    items, raters = block.shape
    if raters < 2 or items < MIN_ITEMS:
        none = Coefficient(
            math.nan, items, raters, reason=f"No two people have scored the same {MIN_ITEMS} images."
        )
        return none, none
    scores = block.to_numpy()
    grand = scores.mean()
    between_items = raters * np.sum((scores.mean(axis=1) - grand) ** 2) / (items - 1)
    between_raters = items * np.sum((scores.mean(axis=0) - grand) ** 2) / (raters - 1)
    noise = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + grand
    error = np.sum(noise**2) / ((items - 1) * (raters - 1))
    spread = between_items + (raters - 1) * error + raters * (between_raters - error) / items
    if spread < 1e-12:
        none = Coefficient(math.nan, items, raters, reason="All scores are the same, so nothing can differ.")
        return none, none
    if between_items + error < 1e-12:
        none = Coefficient(math.nan, items, raters, reason="Nobody scores one image unlike another.")
        return none, none
    single = _bounded(between_items - error, spread)
    low, high = _icc_interval(single, between_items, between_raters, error, items, raters)

    def of_mean(value: float) -> float:
        return _bounded(raters * value, 1 + (raters - 1) * value)

    return (
        Coefficient(single, items, raters, low, high),
        Coefficient(of_mean(single), items, raters, of_mean(low), of_mean(high)),
    )


def largest_block(table: pd.DataFrame) -> pd.DataFrame:
    """A part of the table [items, raters] without gaps, with many degrees of freedom (items-1)(raters-1).

    It begins with the two raters who share most items and adds, one at a time, the rater who keeps most;
    of these blocks it is the one with the most degrees of freedom. (The best of all blocks is NP-hard.)
    """
    rated = table.notna().to_numpy()
    if rated.shape[1] < 2:
        return table.dropna()
    common = rated.T.astype(float) @ rated
    np.fill_diagonal(common, -1)
    chosen = [int(number) for number in np.unravel_index(common.argmax(), common.shape)]
    best, most = chosen[:], -1
    while True:
        items = rated[:, chosen].all(axis=1)
        freedom = (int(items.sum()) - 1) * (len(chosen) - 1)
        if freedom > most:
            best, most = chosen[:], freedom
        kept = rated[items].sum(axis=0)
        kept[chosen] = -1
        if kept.max(initial=-1) < 2:
            return table.iloc[:, sorted(best)].dropna()
        chosen.append(int(kept.argmax()))


def srcc_with_others(table: pd.DataFrame) -> Coefficient:
    """Mean over raters of SRCC with the mean of all others, on images that somebody else has scored."""
    count, total = table.notna().sum(axis=1), table.sum(axis=1)
    values, used = [], pd.Series(False, table.index)
    for name in table:
        common = table[name].notna() & (count > 1)
        if common.sum() >= MIN_ITEMS:
            own = table.loc[common, name]
            values.append(
                srcc(own.to_numpy(), ((total[common] - own) / (count[common] - 1)).round(9).to_numpy())
            )
            used |= common
    return _mean_correlation(values, int(used.sum()), len(values))


def srcc_pairwise(table: pd.DataFrame) -> Coefficient:
    """Mean SRCC over all pairs of raters with enough images in common."""
    rated = table.notna().to_numpy()
    scores = table.to_numpy()
    values, used, people = [], np.zeros(len(table), dtype=bool), set()
    for one, other in combinations(range(table.shape[1]), 2):
        common = rated[:, one] & rated[:, other]
        if common.sum() >= MIN_ITEMS:
            values.append(srcc(scores[common, one], scores[common, other]))
            used |= common
            people |= {one, other}
    return _mean_correlation(values, int(used.sum()), len(people))


def _mean_correlation(values: list[float], items: int, raters: int) -> Coefficient:
    if not values:
        reason = f"No two people have scored the same {MIN_ITEMS} images."
        return Coefficient(math.nan, items, raters, reason=reason)
    if np.isnan(values).all():
        return Coefficient(math.nan, items, raters, reason="Everybody gives one and the same score.")
    return Coefficient(float(np.nanmean(values)), items, raters)


def _icc_interval(
    single: float, between_items: float, between_raters: float, error: float, items: int, raters: int
) -> tuple[float, float]:
    """95 % interval of ICC(2,1) from the mean squares of the analysis of variance; NaN: none."""
    if error < 1e-12:
        return (math.nan, math.nan) if between_raters > 1e-12 else (1.0, 1.0)
    ratio = raters * single * between_raters / error
    rest = items * (1 + (raters - 1) * single) - raters * single
    freedom = (raters - 1) * (items - 1) * (ratio + rest) ** 2 / ((items - 1) * ratio**2 + rest**2)
    lower, upper = scipy.stats.f.ppf(0.975, items - 1, freedom), scipy.stats.f.ppf(0.975, freedom, items - 1)
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return math.nan, math.nan
    others = raters * between_raters + (raters * items - raters - items) * error
    return (
        _bounded(items * (between_items - lower * error), lower * others + items * between_items),
        _bounded(items * (upper * between_items - error), others + items * upper * between_items),
    )


def _bounded(numerator: float, denominator: float) -> float:
    """Their quotient, at least -1: of people who contradict each other an ICC may be anything below 0."""
    if math.isnan(numerator):
        return math.nan
    return max(-1.0, float(numerator / denominator)) if denominator > 0 else -1.0


def _table(opinions: pd.DataFrame) -> pd.DataFrame:
    """Scores [items, raters], NaN where somebody has not scored an item."""
    return opinions.pivot(index="item_id", columns="annotator", values="score")
