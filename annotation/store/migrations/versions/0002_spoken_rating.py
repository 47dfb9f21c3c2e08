"""The language model's own word beside that of the MOS; older assessments keep theirs in `rating`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("aspect_assessments", sa.Column("spoken_rating", sa.String(length=20), nullable=True))
