"""Which image of several people like best."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "preferences",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("token", sa.String(length=64), nullable=False, unique=True),
        sa.Column("annotator_id", sa.Integer(), sa.ForeignKey("annotators.id"), nullable=False, index=True),
        sa.Column("model_version_id", sa.Integer(), sa.ForeignKey("model_versions.id"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "compared_items",
        sa.Column("preference_id", sa.Integer(), sa.ForeignKey("preferences.id"), primary_key=True),
        sa.Column("item_id", sa.Integer(), sa.ForeignKey("items.id"), primary_key=True, index=True),
        sa.Column("preferred", sa.Boolean(), nullable=False),
        sa.Column("overall", sa.Double(), nullable=False),
    )
    op.create_table(
        "preference_withdrawals",
        sa.Column("preference_id", sa.Integer(), sa.ForeignKey("preferences.id"), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
