"""Cases of the annotation database: what a model said of items against what annotators said."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotation.failures.error_table import DataSet, Judged, Opinion, Version, cases, rescaled
from annotation.statistics.mos import mean_opinions, on_one_scale
from annotation.store import Store
from annotation.store.corrections import model_texts, same_text
from annotation.store.current_responses import current_corrections, current_responses
from annotation.store.models import (
    Annotator,
    AspectAssessment,
    Assessment,
    Correction,
    Generator,
    Image,
    Item,
    ModelVersion,
    Prompt,
    Withdrawal,
)
from m3agiqa.aspects import COMMON_SCALE, Aspect
from m3agiqa.errors import InputError

Score = tuple[int, str]
"""Which scores belong together: an item and an aspect."""


class Annotations:
    """The items of the store; a model version is known by its id."""

    prefix = "db"
    mos_label = "MOS of people"

    def __init__(self, store: Store) -> None:
        self.store = store

    def data_sets(self) -> list[DataSet]:
        """One, also while it is empty; the latest model first."""
        with self.store.database.reading() as session:
            models = session.scalars(select(ModelVersion).order_by(ModelVersion.id.desc())).all()
        titles = [model.title for model in models]
        versions = tuple(
            Version(
                f"{self.prefix}:{model.id}",
                model.title if titles.count(model.title) == 1 else f"{model.title} ({model.digest[:6]})",
            )
            for model in models
        )
        return [DataSet(self.prefix, "Annotation database", versions, self.mos_label)]

    def stamp(self, version: str) -> Hashable:
        """Everything is only ever added, so counting is enough."""
        with self.store.database.reading() as session:
            return tuple(
                session.scalar(select(func.count()).select_from(table))
                for table in (Assessment, Correction, Withdrawal)
            )

    def judged(self, version: str) -> Judged:
        """People's MOS, as the Data tab and exports have it, is brought to the model's scale.

        Raises InputError for an unknown version.
        """
        with self.store.database.reading() as session:
            judged = self._latest(session, version)
            responses = current_responses(session)
        both = judged.merge(_people(responses), on=["item_id", "aspect"])
        for column in ("mos", "mos_low", "mos_high"):
            both[column] = rescaled(
                both[column], (COMMON_SCALE.low, COMMON_SCALE.high), (both["scale_low"], both["scale_high"])
            )
        tags = _tags(responses)
        both["tags"] = [tags.get(score, ()) for score in zip(both["item_id"], both["aspect"], strict=True)]
        both["item"] = both.pop("item_id").astype(str)
        answered = judged.merge(responses[["item_id", "aspect"]].drop_duplicates())
        return Judged(cases(both), len(judged) - len(answered))

    def opinions(self, item: str) -> list[Opinion]:
        """The current ones, in the order of the aspects and of their names."""
        if not item.isdecimal():
            return []
        with self.store.database.reading() as session:
            corrections = session.scalars(current_corrections().where(Correction.item_id == int(item))).all()
            shown = model_texts(session, int(item))
            names = dict(session.execute(select(Annotator.id, Annotator.name)).tuples().all())
            item_opinions = [
                Opinion(
                    aspect=correction.aspect,
                    annotator=names[correction.annotator_id],
                    score=correction.score,
                    low=correction.scale_low,
                    high=correction.scale_high,
                    description=None  # a text that was merely left standing is not theirs
                    if not correction.agrees and same_text(correction.description, shown.get(correction.id))
                    else correction.description,
                    agrees=correction.agrees,
                    tags=tuple(sorted(tag.tag for tag in correction.tags)),
                    comment=correction.comment,
                )
                for correction in corrections
            ]
        return sorted(
            item_opinions, key=lambda opinion: (list(Aspect).index(opinion.aspect), opinion.annotator)
        )

    def _latest(self, session: Session, version: str) -> pd.DataFrame:
        """What the model said of every item, the last time it was asked."""
        number = version.removeprefix(f"{self.prefix}:")
        if not number.isdecimal() or session.get(ModelVersion, int(number)) is None:
            raise InputError("The annotation database has no such model version; choose another.")
        latest = (
            select(func.max(Assessment.id))
            .where(Assessment.model_version_id == int(number))
            .group_by(Assessment.item_id)
        )
        query = (
            select(
                Item.id.label("item_id"),
                AspectAssessment.aspect,
                Image.file.label("image"),
                Image.name.label("original_file"),
                Prompt.text.label("prompt"),
                Generator.name.label("generator"),
                Item.source,
                AspectAssessment.mos.label("predicted"),
                AspectAssessment.scale_low,
                AspectAssessment.scale_high,
                func.coalesce(AspectAssessment.spoken_rating, AspectAssessment.rating).label("spoken_rating"),
                AspectAssessment.description,
            )
            .join(AspectAssessment.assessment)
            .join(Assessment.item)
            .join(Item.image)
            .join(Item.prompt)
            .outerjoin(Item.generator)
            .where(Assessment.id.in_(latest))
        )
        rows = session.execute(query).mappings().all()
        judged = pd.DataFrame([dict(row) for row in rows], columns=list(query.selected_columns.keys()))
        judged["aspect"] = [str(aspect) for aspect in judged["aspect"]]
        judged["spoken_rating"] = [str(rating) for rating in judged["spoken_rating"]]
        judged["image"] = [str(self.store.images.path(file)) for file in judged["image"]]
        judged["prompt"] = [prompt or None for prompt in judged["prompt"]]
        return judged.astype(
            {"item_id": "int64", "predicted": float, "scale_low": float, "scale_high": float}
        )


def _people(responses: pd.DataFrame) -> pd.DataFrame:
    """Mean opinions on COMMON_SCALE, of everything that people said: it all tells of their habits."""
    scores = on_one_scale(responses)
    return pd.DataFrame(
        [
            {
                "item_id": item,
                "aspect": str(aspect),
                "mos": mean.mos,
                "mos_low": mean.low,
                "mos_high": mean.high,
                "raters": mean.raters,
            }
            for aspect in Aspect
            for item, mean in mean_opinions(scores[scores["aspect"] == aspect]).items()
        ],
        columns=["item_id", "aspect", "mos", "mos_low", "mos_high", "raters"],
    )


def _tags(responses: pd.DataFrame) -> dict[Score, tuple[str, ...]]:
    """All tags that people gave, each once."""
    by_score: dict[Score, set[str]] = {}
    for item, aspect, tags in zip(responses["item_id"], responses["aspect"], responses["tags"], strict=True):
        by_score.setdefault((item, aspect), set()).update(tags)
    return {score: tuple(sorted(tags)) for score, tags in by_score.items()}
