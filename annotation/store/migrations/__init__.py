"""How the tables came about, as Alembic revisions; run when a database is opened.

To change tables: change annotation/store/models.py, and put a revision with the next number into versions/
that does the same to a database that exists. A test compares the two.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select

MIGRATIONS_FOLDER = Path(__file__).parent
UPGRADE_LOCK = 0x4D33  # any number, the same in all processes


def latest() -> str | None:
    """The revision that this version of the program works with."""
    return ScriptDirectory(str(MIGRATIONS_FOLDER)).get_current_head()


def knows(revision: str) -> bool:
    """Whether a revision is one of this version's, rather than of a newer version."""
    return revision in {
        script.revision for script in ScriptDirectory(str(MIGRATIONS_FOLDER)).walk_revisions()
    }


def revision(connection: Connection) -> str | None:
    """The revision that a database is at; None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection, to: str = "head") -> None:
    """Bring a database to a revision, by default the latest, within the connection's transaction.

    Processes that do so at the same time wait for each other: SQLite's lock comes with the transaction.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(UPGRADE_LOCK)))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, to)
