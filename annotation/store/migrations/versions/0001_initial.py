"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "annotators",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_annotators"),
        sa.UniqueConstraint("name", name="uq_annotators_name"),
    )
    op.create_table(
        "generators",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generators"),
        sa.UniqueConstraint("name", name="uq_generators_name"),
    )
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("file", sa.String(length=80), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_images"),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("learned_from", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_versions"),
        sa.UniqueConstraint("title", "digest", name="uq_model_versions_title_digest"),
    )
    op.create_table(
        "prompts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("sha256", name="uq_prompts_sha256"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_audit_entries_annotator_id_annotators"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("image_sha256", sa.String(length=64), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("generator_id", sa.Integer(), nullable=True),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["generator_id"], ["generators.id"], name="fk_items_generator_id_generators"),
        sa.ForeignKeyConstraint(["image_sha256"], ["images.sha256"], name="fk_items_image_sha256_images"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name="fk_items_prompt_id_prompts"),
        sa.PrimaryKeyConstraint("id", name="pk_items"),
        sa.UniqueConstraint("image_sha256", "prompt_id", name="uq_items_image_sha256_prompt_id"),
    )
    op.create_index("ix_items_source", "items", ["source"])
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_promotions_annotator_id_annotators"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_table(
        "assessments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_assessments_annotator_id_annotators"
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_assessments_item_id_items"),
        sa.ForeignKeyConstraint(
            ["model_version_id"], ["model_versions.id"], name="fk_assessments_model_version_id_model_versions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_assessments"),
    )
    op.create_index("ix_assessments_item_id_model_version_id", "assessments", ["item_id", "model_version_id"])
    op.create_table(
        "assignments",
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=True),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_assignments_annotator_id_annotators"
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_assignments_item_id_items"),
        sa.PrimaryKeyConstraint("item_id", "annotator_id", name="pk_assignments"),
        sa.UniqueConstraint("item_id", "slot", name="uq_assignments_item_id_slot"),
    )
    op.create_index("ix_assignments_annotator_id_state", "assignments", ["annotator_id", "state"])
    op.create_index("ix_assignments_annotator_id_turn", "assignments", ["annotator_id", "turn"])
    op.create_index("ix_assignments_state_held_until", "assignments", ["state", "held_until"])
    op.create_table(
        "gold_answers",
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("aspect", sa.String(length=20), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("tolerance", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_gold_answers_item_id_items"),
        sa.PrimaryKeyConstraint("item_id", "aspect", name="pk_gold_answers"),
    )
    op.create_table(
        "queue_entries",
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("order", sa.Double(), nullable=False),
        sa.Column("uncertainty", sa.Double(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_queue_entries_item_id_items"),
        sa.PrimaryKeyConstraint("item_id", name="pk_queue_entries"),
    )
    op.create_index(
        "ix_queue_entries_least",
        "queue_entries",
        ["taken", "order"],
        sqlite_where=sa.text("taken < overlap"),
        postgresql_where=sa.text("taken < overlap"),
    )
    op.create_index(
        "ix_queue_entries_random",
        "queue_entries",
        ["order"],
        sqlite_where=sa.text("taken < overlap"),
        postgresql_where=sa.text("taken < overlap"),
    )
    op.create_index(
        "ix_queue_entries_uncertain",
        "queue_entries",
        ["uncertainty", "order"],
        sqlite_where=sa.text("taken < overlap"),
        postgresql_where=sa.text("taken < overlap"),
    )
    op.create_table(
        "aspect_assessments",
        sa.Column("assessment_id", sa.Integer(), nullable=False),
        sa.Column("aspect", sa.String(length=20), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("rating", sa.String(length=20), nullable=False),
        sa.Column("mos", sa.Double(), nullable=False),
        sa.Column("raw_mos", sa.Double(), nullable=False),
        sa.Column("scale_low", sa.Double(), nullable=False),
        sa.Column("scale_high", sa.Double(), nullable=False),
        sa.Column("spread", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["assessment_id"], ["assessments.id"], name="fk_aspect_assessments_assessment_id_assessments"
        ),
        sa.PrimaryKeyConstraint("assessment_id", "aspect", name="pk_aspect_assessments"),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("assessment_id", sa.Integer(), nullable=True),
        sa.Column("place", sa.String(length=20), nullable=False),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_submissions_annotator_id_annotators"
        ),
        sa.ForeignKeyConstraint(
            ["assessment_id"], ["assessments.id"], name="fk_submissions_assessment_id_assessments"
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_submissions_item_id_items"),
        sa.PrimaryKeyConstraint("id", name="pk_submissions"),
        sa.UniqueConstraint("token", name="uq_submissions_token"),
    )
    op.create_index("ix_submissions_annotator_id", "submissions", ["annotator_id"])
    op.create_index("ix_submissions_item_id", "submissions", ["item_id"])
    op.create_table(
        "corrections",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("submission_id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("aspect", sa.String(length=20), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("agrees", sa.Boolean(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("scale_low", sa.Double(), nullable=False),
        sa.Column("scale_high", sa.Double(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["annotator_id"], ["annotators.id"], name="fk_corrections_annotator_id_annotators"
        ),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_corrections_item_id_items"),
        sa.ForeignKeyConstraint(
            ["submission_id"], ["submissions.id"], name="fk_corrections_submission_id_submissions"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_corrections"),
        sa.UniqueConstraint(
            "item_id",
            "aspect",
            "annotator_id",
            "revision",
            name="uq_corrections_item_id_aspect_annotator_id_revision",
        ),
    )
    op.create_index("ix_corrections_annotator_id", "corrections", ["annotator_id"])
    op.create_index("ix_corrections_submission_id", "corrections", ["submission_id"])
    op.create_table(
        "correction_tags",
        sa.Column("correction_id", sa.Integer(), nullable=False),
        sa.Column("tag", sa.String(length=60), nullable=False),
        sa.ForeignKeyConstraint(
            ["correction_id"], ["corrections.id"], name="fk_correction_tags_correction_id_corrections"
        ),
        sa.PrimaryKeyConstraint("correction_id", "tag", name="pk_correction_tags"),
    )
    op.create_table(
        "withdrawals",
        sa.Column("correction_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["correction_id"], ["corrections.id"], name="fk_withdrawals_correction_id_corrections"
        ),
        sa.PrimaryKeyConstraint("correction_id", name="pk_withdrawals"),
    )
