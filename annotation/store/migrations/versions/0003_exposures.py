"""What people have been shown, and as far as submissions and assessments tell, were shown before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    exposures = op.create_table(
        "exposures",
        sa.Column("annotator_id", sa.Integer(), sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("item_id", sa.Integer(), sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("aspect", sa.String(length=20), primary_key=True),
        sa.Column("answers_of", sa.String(length=20), primary_key=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    statement = sa.text(_SELECT_SHOWN_ANSWERS).columns(created_at=sa.DateTime(timezone=True))
    known: dict[tuple[int, int, str], dict[str, object]] = {}
    for row in op.get_bind().execute(statement).mappings():
        key = row["annotator_id"], row["item_id"], row["aspect"]
        known.setdefault(key, {**row, "answers_of": "model"})
    if known:
        op.bulk_insert(exposures, list(known.values()))


# Whoever has saved something with the model's answer at hand has read it: in blind mode after the score.
_SELECT_SHOWN_ANSWERS = """
SELECT annotator_id, item_id, aspect, score, created_at FROM (
  SELECT assessments.annotator_id, assessments.item_id, aspect_assessments.aspect,
         NULL AS score, assessments.created_at
  FROM assessments JOIN aspect_assessments ON aspect_assessments.assessment_id = assessments.id
  WHERE assessments.annotator_id IS NOT NULL
  UNION ALL
  SELECT submissions.annotator_id, submissions.item_id, aspect_assessments.aspect,
         CASE WHEN submissions.blind THEN corrections.score END AS score, submissions.created_at
  FROM submissions JOIN aspect_assessments ON aspect_assessments.assessment_id = submissions.assessment_id
  LEFT JOIN corrections ON corrections.submission_id = submissions.id
    AND corrections.aspect = aspect_assessments.aspect
  WHERE NOT submissions.blind OR corrections.id IS NOT NULL
) AS shown ORDER BY created_at
"""
