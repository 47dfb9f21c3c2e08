"""Which image of several people like best."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "preferences",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_preferences_annotator_id_annotators"
        ),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_versions.id"], name="fk_preferences_model_version_id_model_versions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_preferences"),
        sa.UniqueConstraint("token", name="uq_preferences_token"),
    )
    op.create_index("ix_preferences_annotator_id", "preferences", ["annotator_id"])
    op.create_table(
        "compared_items",
        sa.Column("preference_id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("preferred", sa.Boolean(), nullable=False),
        sa.Column("overall", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["preference_id"], ["preferences.id"], name="fk_compared_items_preference_id_preferences"
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_compared_items_item_id_items"),
        sa.PrimaryKeyConstraint("preference_id", "item_id", name="pk_compared_items"),
    )
    op.create_index("ix_compared_items_item_id", "compared_items", ["item_id"])
    op.create_table(
        "preference_withdrawals",
        sa.Column("preference_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["preference_id"], ["preferences.id"], name="fk_preference_withdrawals_preference_id_preferences"
        ),
        sa.PrimaryKeyConstraint("preference_id", name="pk_preference_withdrawals"),
    )
