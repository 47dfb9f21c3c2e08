"""The annotation database in numbers: how much there is, how far people agree, and how each of them works."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import pandas as pd
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotation.statistics.doubts import Doubts, doubts
from annotation.statistics.inter_rater import RaterAgreement, rater_agreement
from annotation.statistics.mos import Scaling, Subject, on_one_scale, scale_opinions
from annotation.store.corrections import model_texts
from annotation.store.current_responses import current_responses
from annotation.store.models import (
    Assessment,
    Correction,
    GoldAnswer,
    Image,
    Item,
    Preference,
    PreferenceWithdrawal,
    Withdrawal,
)
from annotation.store.preferences import OrderAgreement, order_agreement
from m3agiqa.aspects import Aspect

MAX_PAUSE = pd.Timedelta(minutes=10)
"""Longer pauses between two submissions are no work, and not in the pace."""
IMPORT_PLACE = "import"
"""The place of opinions that were given elsewhere, at times that nobody knows."""


@dataclass(frozen=True)
class AspectSummary:
    """One aspect; scores of models' other scales count as on COMMON_SCALE."""

    corrections: int
    confirmed: float
    """Share of corrections that confirm the model's answer, 0 to 1; NaN for none."""
    agreement: RaterAgreement
    scaling: Scaling


@dataclass(frozen=True)
class AnnotatorSummary:
    """How a person works."""

    name: str
    corrections: int
    images: int
    median_seconds: float
    """Per image, as their page measured it; NaN if never."""
    per_hour: float
    """Images saved per hour of work, breaks of over ten minutes left out; NaN for fewer than two."""
    difference: float
    """Mean difference to the mean of all others' scores of the same image and aspect; NaN without others."""
    subjects: dict[Aspect, Subject]
    """Bias and inconsistency by P.910, per aspect that they have scored."""
    gold_right: int
    gold_asked: int
    """Calibration scores given, and how many of them are within the answer's tolerance."""
    last_active: datetime


@dataclass(frozen=True)
class Overview:
    """Everything that the Data tab shows, about current corrections unless it says otherwise."""

    images: int
    items: int
    """Images with their prompts: one image may have several."""
    assessments: int
    corrections: int
    superseded: int
    undone: int
    aspects: dict[Aspect, AspectSummary]
    annotators: list[AnnotatorSummary]
    """Most corrections first."""
    of_items: pd.DataFrame
    """By item_id: image_sha256, original_file and prompt of all that have been corrected."""
    doubts: Doubts
    picks: OrderAgreement


def version(session: Session) -> tuple[int, ...]:
    """Changes whenever an overview would."""
    return tuple(
        session.scalar(select(number)) or 0
        for number in (
            func.max(Correction.id),
            func.count(Withdrawal.correction_id),
            func.max(Assessment.id),
            func.max(Item.id),
            func.count(GoldAnswer.item_id),
            func.max(Preference.id),
            func.count(PreferenceWithdrawal.preference_id),
        )
    )


def overview(session: Session) -> Overview:
    """The database as it is now."""
    responses = on_one_scale(current_responses(session))
    total = session.scalar(select(func.count(Correction.id))) or 0
    undone = session.scalar(select(func.count(Withdrawal.correction_id))) or 0
    aspects = {aspect: _aspect(responses[responses["aspect"] == aspect]) for aspect in Aspect}
    return Overview(
        images=session.scalar(select(func.count(Image.sha256))) or 0,
        items=session.scalar(select(func.count(Item.id))) or 0,
        assessments=session.scalar(select(func.count(Assessment.id))) or 0,
        corrections=len(responses),
        superseded=total - undone - len(responses),
        undone=undone,
        aspects=aspects,
        annotators=_annotators(responses, aspects, _gold(session)),
        of_items=responses.groupby("item_id")[["image_sha256", "original_file", "prompt"]].first(),
        doubts=doubts(responses, model_texts(session)),
        picks=order_agreement(session),
    )


def _aspect(responses: pd.DataFrame) -> AspectSummary:
    confirmed = float(responses["agrees"].mean()) if len(responses) else math.nan
    return AspectSummary(len(responses), confirmed, rater_agreement(responses), scale_opinions(responses))


# --- annotators --------------------------------------------------------------------------------


def _annotators(
    responses: pd.DataFrame, aspects: dict[Aspect, AspectSummary], gold: pd.DataFrame
) -> list[AnnotatorSummary]:
    responses = responses.assign(difference=differences(responses)).merge(
        gold, how="left", on=["item_id", "aspect"]
    )
    responses["right"] = (responses["score"] - responses["answer"]).abs() <= responses["tolerance"] + 1e-9
    summaries = [
        AnnotatorSummary(
            name=str(name),
            corrections=len(own),
            images=own["item_id"].nunique(),
            median_seconds=_median_seconds(own),
            per_hour=pace(own),
            difference=float(own["difference"].mean()),
            subjects={
                aspect: summary.scaling.subjects[str(name)]
                for aspect, summary in aspects.items()
                if name in summary.scaling.subjects
            },
            gold_right=int(own["right"].sum()),
            gold_asked=int(own["answer"].notna().sum()),
            last_active=own["created_at"].max().to_pydatetime(),
        )
        for name, own in responses.groupby("annotator")
    ]
    return sorted(summaries, key=lambda summary: (-summary.corrections, summary.name))


def differences(responses: pd.DataFrame) -> pd.Series:
    """Of each score to the mean of the others' scores of the same item and aspect; NaN without others."""
    scores = responses.groupby(["item_id", "aspect"])["score"]
    count, total = scores.transform("size"), scores.transform("sum")
    others = (total - responses["score"]) / (count - 1).where(count > 1)
    return responses["score"] - others


def pace(own: pd.DataFrame) -> float:
    """Images that a person saves per hour of work, from the moments of their submissions."""
    gaps = _submissions(own)["created_at"].sort_values().diff().dropna()
    gaps = gaps[(gaps <= MAX_PAUSE) & (gaps > pd.Timedelta(0))]
    return float(len(gaps) / (gaps.sum() / pd.Timedelta(hours=1))) if len(gaps) else math.nan


def _median_seconds(own: pd.DataFrame) -> float:
    seconds = _submissions(own)["seconds"]
    return float(seconds[seconds > 0].median())


def _submissions(own: pd.DataFrame) -> pd.DataFrame:
    here = own[own["place"] != IMPORT_PLACE]
    return here.drop_duplicates(["item_id", "created_at"])


def _gold(session: Session) -> pd.DataFrame:
    """Known answers, on COMMON_SCALE as imports give them: item_id, aspect, answer, tolerance."""
    rows = session.execute(
        select(GoldAnswer.item_id, GoldAnswer.aspect, GoldAnswer.score, GoldAnswer.tolerance)
    ).all()
    return pd.DataFrame(
        [(item, str(aspect), score, tolerance) for item, aspect, score, tolerance in rows],
        columns=["item_id", "aspect", "answer", "tolerance"],
    ).astype({"item_id": "int64", "aspect": "str", "answer": float, "tolerance": float})
