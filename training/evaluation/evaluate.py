"""Stage evaluate: how far predictions agree with the true scores, in all and by group.

Everything is measured on one table of predictions, a row for each image and aspect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd

from m3agiqa.aspects import RATING_WORDS, Aspect, MosScale, Rating
from m3agiqa.checkpoint.calibration import Calibration
from m3agiqa.grouping import fold_prompt
from m3agiqa.metrics import (
    Ratings,
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
from m3agiqa.predictor.model import Predictor
from training.evaluation.description_metrics import description_metrics
from training.evaluation.rating_words import classification
from training.stages.fit import predict
from training.stages.fit_data import Target

PREDICTION_COLUMNS = (
    *("sample", "image", "prompt", "generator", "source", "split", "aspect"),
    *("mos", "predicted", "raw", "rating", "spoken_rating", "description", "reference"),
)
NOT_GIVEN = "not given"
PROMPT_LENGTHS = ((5, "1 to 5 words"), (15, "6 to 15 words"), (math.inf, "16 words and more"))
NO_PROMPT = "no prompt"
MIN_GROUP_SIZE = 5
"""A correlation of fewer images than this says nothing, so groups of fewer have none."""
MIN_PROMPT_SIZE = 3
"""Images of one prompt are few in every data set; their correlations only count averaged."""
SLOW_METRIC_DRAWS = 200
"""Resamples where each one is slow (a logistic fit) or there are many groups to draw them for."""


def prediction_table(predictor: Predictor, targets: Sequence[Target], scale: MosScale) -> pd.DataFrame:
    """One row an image, with the columns PREDICTION_COLUMNS.

    `raw` is what the predictor said, `predicted` that within the scale and `rating` its word; `spoken_rating`
    and `description` are what the backbone has generated and `reference` is the teacher's description. What
    is not known is missing (None or NaN). The targets are of one aspect, the predictor's; pandas.concat joins
    the tables of several.
    """
    raw = predict(predictor, [target.states for target in targets])
    rows = [
        {
            "sample": target.sample.id,
            "image": str(target.sample.image),
            "prompt": target.sample.prompt,
            "generator": target.sample.generator,
            "source": target.sample.source,
            "split": target.sample.split,
            "aspect": str(target.aspect),
            "mos": target.mos,
            "predicted": scale.clamp(score),
            "raw": score,
            "rating": str(scale.rating(score)),
            "spoken_rating": None if target.rating is None else str(target.rating),
            "description": target.description,
            "reference": target.sample.descriptions.get(target.aspect),
        }
        for target, score in zip(targets, raw, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(PREDICTION_COLUMNS))


# --- in all ------------------------------------------------------------------------------------


def evaluate(
    predictor: Predictor, targets: Sequence[Target], scale: MosScale, calibration: Calibration | None = None
) -> dict[str, float]:
    """The numbers of a model card: `agreement` of one predictor on some images, and its backbone's words.

    `spoken_…`: how the rating words that the backbone has generated agree with the MOS by themselves, and how
    often they are the word for the predicted MOS, or at most next to it. With a calibration also
    `interval_coverage`.
    """
    predicted = [scale.clamp(raw) for raw in predict(predictor, [target.states for target in targets])]
    true = [target.mos for target in targets]
    measures = agreement(predicted, true, scale) | _spoken(
        [t.rating for t in targets], predicted, true, scale
    )
    if calibration is not None:
        sources = [target.sample.source for target in targets]
        measures |= interval_coverage(calibration, predicted, true, sources, scale)
    return measures


def interval_coverage(
    calibration: Calibration,
    predicted: Sequence[float],
    true: Sequence[float],
    sources: Sequence[str | None],
    scale: MosScale,
) -> dict[str, float]:
    """Share of true scores inside the interval around the predicted one, and its half width.

    `interval_coverage_by_source` is that of the sources that have a half width of their own, with it.
    """

    def inside(score: float, mos: float, source: str | None = None) -> bool:
        low, high = calibration.interval(score, scale, source)
        return low <= mos <= high

    rows = list(zip(predicted, true, sources, strict=True))
    measures = {
        "interval_coverage": fmean(inside(score, mos) for score, mos, _ in rows),
        "interval_half_width": calibration.half_width,
    }
    own = [inside(*row) for row in rows if row[2] in calibration.by_source]
    return measures | ({"interval_coverage_by_source": fmean(own)} if own else {})


def agreement(predicted: Sequence[float], true: Sequence[float], scale: MosScale) -> dict[str, float]:
    """SRCC (with 95 % interval), PLCC, KRCC and RMSE, and accuracy over the five rating words."""
    low, high = bootstrap_interval(srcc, predicted, true)
    words = [scale.rating(p) for p in predicted], [scale.rating(t) for t in true]
    return {
        "n": len(true),
        "srcc": srcc(predicted, true),
        "srcc_low": low,
        "srcc_high": high,
        "plcc": plcc(predicted, true),
        "krcc": krcc(predicted, true),
        "rmse": rmse(predicted, true),
        "accuracy": accuracy(*words),
        "rough_accuracy": rough_accuracy(*words),
    }


def summary(table: pd.DataFrame, scale: MosScale) -> dict[str, dict[str, object]]:
    """All that is known of each aspect of a table of predictions, aspect by aspect.

    Beside `agreement`: `plcc_logistic`; `…_low` and `…_high` of every correlation and of `rmse` (95 %,
    1000 resamples, and 200 of the logistic PLCC, which is fitted anew to each); `precision_…`
    and `f1_…`, macro and weighted, over the five words of the predicted MOS, and their `confusion` (5 rows
    of true words). `spoken_…` is the same for the generated words where there are any, with `spoken_srcc`,
    `spoken_plcc` (of the words as ranks) and how often they are the words of the predicted MOS.
    `described_…` is what training.evaluation.description_metrics says of the descriptions.
    """
    return {str(aspect): _aspect_summary(part, scale) for aspect, part in _by_aspect(table)}


def _by_aspect(table: pd.DataFrame) -> list[tuple[Aspect, pd.DataFrame]]:
    """In the order of Aspect, whatever the table's."""
    parts = {Aspect(aspect): part for aspect, part in table.groupby("aspect")}
    return [(aspect, parts[aspect]) for aspect in Aspect if aspect in parts]


def _aspect_summary(part: pd.DataFrame, scale: MosScale) -> dict[str, object]:
    predicted, true = part["predicted"].to_numpy(), part["mos"].to_numpy()
    measures: dict[str, object] = dict(agreement(predicted, true, scale))
    measures["plcc_logistic"] = plcc_logistic(predicted, true)
    slow = {"plcc_logistic": SLOW_METRIC_DRAWS}
    for metric in (plcc, plcc_logistic, krcc, rmse):
        name = metric.__name__
        low, high = bootstrap_interval(metric, predicted, true, draws=slow.get(name, 1000))
        measures |= {f"{name}_low": low, f"{name}_high": high}
    own, meant = [scale.rating(p) for p in predicted], [scale.rating(t) for t in true]
    for average in ("macro", "weighted"):
        precision, f1 = precision_and_f1(own, meant, average)
        measures |= {f"precision_{average}": precision, f"f1_{average}": f1}
    measures["confusion"] = confusion(own, meant).tolist()
    words = [Rating(word) if isinstance(word, str) else None for word in part["spoken_rating"]]
    if any(words):
        measures |= {f"spoken_{name}": value for name, value in classification(words, meant).items()}
        measures["spoken_confusion"] = confusion(words, meant).tolist()
        measures["spoken_plcc"] = plcc(*_ranks(words, true))
    about = {f"described_{name}": value for name, value in description_metrics(part).items()}
    return measures | _spoken(words, predicted, true, scale) | about


def _spoken(
    words: Ratings, predicted: Sequence[float], true: Sequence[float], scale: MosScale
) -> dict[str, float]:
    """SRCC of the words that there are; a missing word is never the predicted one."""
    if not any(words):
        return {}
    own = [scale.rating(p) for p in predicted]
    return {
        "spoken_srcc": srcc(*_ranks(words, true)),
        "spoken_is_predicted": accuracy(words, own),
        "spoken_is_near_predicted": rough_accuracy(words, own),
    }


def _ranks(words: Ratings, true: Sequence[float]) -> tuple[list[float], list[float]]:
    """The words that there are as numbers from 0, and the scores beside them."""
    pairs = [(word, mos) for word, mos in zip(words, true, strict=True) if word is not None]
    return [RATING_WORDS.index(word) for word, _ in pairs], [mos for _, mos in pairs]


# --- by group ----------------------------------------------------------------------------------


def by_group(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Agreement inside each value of a column ("generator", "source", …) of each aspect.

    Columns: aspect, group, n, srcc, srcc_low, srcc_high, plcc, rmse and bias (mean of predicted less true,
    in units of the MOS scale). Largest groups first; a missing value is the group "not given".
    """
    known = table[column].astype(object)
    return _by(table.assign(group=known.where(known.notna(), NOT_GIVEN)))


def by_prompt_length(table: pd.DataFrame) -> pd.DataFrame:
    """The same for images with short, middling, long and no prompts, in this order."""
    groups = _by(table.assign(group=[_length(prompt) for prompt in table["prompt"]]))
    order = [*(label for _, label in PROMPT_LENGTHS), NO_PROMPT]
    ranks = groups["aspect"].map(list(Aspect).index), groups["group"].map(order.index)
    return groups.iloc[np.lexsort(ranks[::-1])].reset_index(drop=True)


def within_prompts(table: pd.DataFrame) -> pd.DataFrame:
    """Mean SRCC inside the prompts that have at least 3 images, not all with the same MOS.

    Columns: aspect, prompts (how many those are), n (their images), srcc. Prompts are the same if they
    differ by white space and case only. A prompt whose images are all predicted alike counts as 0.
    """
    rows = []
    for aspect, part in _by_aspect(table[table["prompt"].notna()]):
        folded = part["prompt"].map(fold_prompt)
        several = [
            images
            for prompt, images in part.groupby(folded)
            if prompt and len(images) >= MIN_PROMPT_SIZE and images["mos"].nunique() > 1
        ]
        inside = np.nan_to_num([srcc(images["predicted"], images["mos"]) for images in several])
        mean = float(inside.mean()) if several else math.nan
        rows.append((str(aspect), len(several), sum(map(len, several)), mean))
    return pd.DataFrame(rows, columns=["aspect", "prompts", "n", "srcc"])


def _length(prompt: object) -> str:
    count = len(prompt.split()) if isinstance(prompt, str) else 0
    return next(label for most, label in PROMPT_LENGTHS if count <= most) if count else NO_PROMPT


def _by(table: pd.DataFrame) -> pd.DataFrame:
    """Of each aspect and value of the column `group`."""
    columns = ["aspect", "group", "n", "srcc", "srcc_low", "srcc_high", "plcc", "rmse", "bias"]
    rows = []
    for aspect, part in _by_aspect(table):
        inside = [(str(aspect), str(group), *_group(images)) for group, images in part.groupby("group")]
        rows += sorted(inside, key=lambda row: (-row[2], row[1]))
    return pd.DataFrame(rows, columns=columns)


def _group(images: pd.DataFrame) -> tuple[float, ...]:
    predicted, true = images["predicted"].to_numpy(), images["mos"].to_numpy()
    error, bias = rmse(predicted, true), float(np.mean(predicted - true))
    if len(images) < MIN_GROUP_SIZE:
        return len(images), math.nan, math.nan, math.nan, math.nan, error, bias
    interval = bootstrap_interval(srcc, predicted, true, draws=SLOW_METRIC_DRAWS)
    return len(images), srcc(predicted, true), *interval, plcc(predicted, true), error, bias


def share_lower(pairs: Sequence[tuple[float, float]]) -> float:
    """Share of (original, worse) scores in the right order; there must be some."""
    return sum(worse < original for original, worse in pairs) / len(pairs)
