"""The responses that are neither superseded nor withdrawn, as a table: for statistics, exports, failures."""

from __future__ import annotations

from collections import defaultdict

import pandas as pd
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from annotation.store.models import (
    Annotator,
    Correction,
    CorrectionTag,
    Generator,
    Image,
    Item,
    Prompt,
    Submission,
)

RESPONSE_COLUMNS = {
    "correction_id": "int64",
    "item_id": "int64",
    "aspect": "str",
    "annotator": "str",
    "score": "float64",
    "low": "float64",
    "high": "float64",
    "description": "object",  # of columns with None: pandas would make it NaN, which counts as true
    "agrees": "bool",
    "blind": "bool",
    "tags": "object",
    "comment": "object",
    "seconds": "float64",
    "created_at": "datetime64[us, UTC]",
    "assessment_id": "object",
    "place": "str",
    "image_sha256": "str",
    "original_file": "str",
    "prompt": "str",
    "generator": "object",
    "source": "str",
    "gold": "bool",
}


def current_corrections() -> Select[Correction]:
    """All current corrections: per item, aspect and annotator the highest revision not withdrawn."""
    newer = aliased(Correction)
    superseded = (
        select(newer.id)
        .where(
            newer.item_id == Correction.item_id,
            newer.aspect == Correction.aspect,
            newer.annotator_id == Correction.annotator_id,
            newer.revision > Correction.revision,
            ~newer.withdrawal.has(),
        )
        .exists()
    )
    return select(Correction).where(~Correction.withdrawal.has(), ~superseded)


def current_responses(session: Session) -> pd.DataFrame:
    """All current corrections, one row each, oldest first.

    `low` and `high` are the scale of `score`; `seconds` is the time of the whole submission; `prompt` is
    "" where there is none; `gold` tells a calibration image. Columns are there even if rows are not.
    """
    ids = current_corrections().with_only_columns(Correction.id)
    tags = defaultdict(list)
    for tag in session.scalars(select(CorrectionTag).where(CorrectionTag.correction_id.in_(ids))):
        tags[tag.correction_id].append(tag.tag)
    rows = session.execute(
        select(
            Correction.id.label("correction_id"),
            Correction.item_id,
            Correction.aspect,
            Annotator.name.label("annotator"),
            Correction.score,
            Correction.scale_low.label("low"),
            Correction.scale_high.label("high"),
            Correction.description,
            Correction.agrees,
            Submission.blind,
            Correction.comment,
            Submission.seconds,
            Submission.created_at,
            Submission.assessment_id,
            Submission.place,
            Item.image_sha256,
            Image.name.label("original_file"),
            Prompt.text.label("prompt"),
            Generator.name.label("generator"),
            Item.source,
            Item.gold.any().label("gold"),
        )
        .join(Correction.submission)
        .join(Submission.annotator)
        .join(Submission.item)
        .join(Item.image)
        .join(Item.prompt)
        .join(Item.generator, isouter=True)
        .where(Correction.id.in_(ids))
        .order_by(Correction.id)
    )
    records = [{**row, "tags": tuple(sorted(tags[row["correction_id"]]))} for row in rows.mappings()]
    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in records], dtype=dtype)
            for name, dtype in RESPONSE_COLUMNS.items()
        }
    )
