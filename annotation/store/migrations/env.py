"""What Alembic runs to upgrade the connection that annotation.store.migrations.upgrade hands it."""

from __future__ import annotations

from alembic import context

from annotation.store.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
