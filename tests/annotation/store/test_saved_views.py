from older_database import rewind

from annotation.store import Database, migrations
from annotation.store.saved_views import find_view, remove_view, save_view, saved_views


def names_and_queries(database: Database) -> list[tuple[str, str, str]]:
    with database.reading() as session:
        return [(view.name, view.query, view.annotator.name) for view in saved_views(session)]


def test_the_latest_of_a_name_counts_until_it_is_removed(database: Database) -> None:
    with database.engine.begin() as connection:  # a database of before takes views
        rewind(connection, "0005")
        migrations.upgrade(connection)
    for name, query in (("worst", "?a=1"), ("hands", "?a=2"), (" worst ", "?a=3")):
        database.transact(lambda session, name=name, query=query: save_view(session, name, query, "ann"))
    assert names_and_queries(database) == [("hands", "?a=2", "ann"), ("worst", "?a=3", "ann")]
    database.transact(lambda session: remove_view(session, find_view(session, 3), "bob"))
    assert names_and_queries(database) == [("hands", "?a=2", "ann")]
    database.transact(lambda session: save_view(session, "worst", "?a=4", "bob"))
    assert names_and_queries(database)[1] == ("worst", "?a=4", "bob")
