"""A database as an earlier version of the project left it."""

from sqlalchemy import Connection, text

TABLES_OF_REVISION = {
    "0003": ("exposures",),
    "0004": ("preference_withdrawals", "compared_items", "preferences"),
    "0005": ("api_tokens",),
    "0006": ("saved_views",),
    "0007": ("pooled_states",),
}
"""What each migration creates, in the order in which it can be dropped; a new one belongs here, too."""


def rewind(connection: Connection, revision: str) -> None:
    """Drop the tables that later migrations than `revision` create."""
    for later, tables in sorted(TABLES_OF_REVISION.items(), reverse=True):
        for table in tables if later > revision else ():
            connection.execute(text(f"DROP TABLE {table}"))
    connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
