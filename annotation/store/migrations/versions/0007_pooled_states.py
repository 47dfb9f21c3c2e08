"""What the regression head read, by which the queue finds images that stand for many others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    assessment = sa.ForeignKey("assessments.id")
    op.create_table(
        "pooled_states",
        sa.Column("assessment_id", sa.Integer(), assessment, primary_key=True, autoincrement=False),
        sa.Column("aspect", sa.String(length=20), primary_key=True),
        sa.Column("states", sa.LargeBinary(), nullable=False),
    )
