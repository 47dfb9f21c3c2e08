from __future__ import annotations

import multiprocessing
import os
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from postgres_server import PostgresServer
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import Session

from annotation.store import Database
from annotation.store import database as database_module
from annotation.store.database import StoreError
from annotation.store.models import Annotator, AuditEntry, Base
from annotation.store.people import annotator_named

FORK = multiprocessing.get_context("fork")  # torch takes seconds to import anew


def names(database: Database) -> list[str]:
    with database.reading() as session:
        return sorted(session.scalars(select(Annotator.name)))


def add(name: str) -> Callable[[Session], int]:
    return lambda session: annotator_named(session, name).id


@pytest.fixture
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Names a database of either kind that nobody has opened yet."""
    made: list[tuple[PostgresServer, str]] = []

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'a new' / 'folder' / 'annotations.db'}"
        server = request.getfixturevalue("postgres")
        made.append((server, server.create()))
        return server.url(made[-1][1])

    yield make
    for server, name in made:
        server.drop(name)


# --- opening -----------------------------------------------------------------------------------


def test_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def open_at_once(url: str, start: Barrier, results: Queue[str]) -> None:
    start.wait(60)
    try:
        database = Database.open(url)
        database.transact(add(f"process {os.getpid()}"))
        database.close()
        results.put("")
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_processes_that_open_a_new_database_together_do_not_collide(
    kind: str, fresh_url: Callable[[str], str]
) -> None:
    url, start, results = fresh_url(kind), FORK.Barrier(6), FORK.Queue()
    processes = [FORK.Process(target=open_at_once, args=(url, start, results)) for _ in range(6)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [""] * 6
    for process in processes:
        process.join(60)
    database = Database.open(url)
    assert len(names(database)) == 6
    database.close()


def test_a_database_of_a_newer_version_is_left_alone(database: Database, database_url: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer version .*revision 9999.*Install that version"):
        Database.open(database_url)
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE images (path TEXT)")
    with pytest.raises(StoreError, match="images already exists"):
        Database.open(f"sqlite:///{path}")
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("images",)]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("These are notes, which nobody would like to lose. " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no database; move it away"):
        Database.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/data cannot be made .*choose another with M3AGIQA_DATA"):
        Database.open(f"sqlite:///{tmp_path}/file/data/annotations.db")


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Database.open(f"sqlite:///{tmp_path}")


def test_a_database_that_may_only_be_read(sqlite_database: Database) -> None:
    path = sqlite_database.engine.url.database
    only_reading = Database.open(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert names(only_reading) == []
    with pytest.raises(StoreError, match="may not be written to"):
        only_reading.transact(add("ann"))
    only_reading.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "cannot be understood"),
        ("annotations.db", "cannot be understood"),
        ("oracle9://host/name", "cannot be understood"),
        ("postgresql://host:port/name", "cannot be understood"),
        ("sqlite://", "would forget everything"),
        ("sqlite:///:memory:", "would forget everything"),
    ],
)
def test_urls_that_name_no_lasting_database(url: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence):
        Database.open(url)


def test_a_driver_that_is_not_installed() -> None:
    for_postgres = r"for PostgreSQL run: pip install \"m3agiqa\[postgres\]\""
    with pytest.raises(StoreError, match=f"needs the Python package 'oracledb'.*{for_postgres}"):
        Database.open("oracle+oracledb://host/name")


def test_a_refused_connection_is_told_without_the_password(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MAX_ATTEMPTS", 1)
    url = postgres.url("missing").replace("@", ":secret@")
    with pytest.raises(StoreError, match='database "missing" does not exist') as caught:
        Database.open(url)
    assert "secret" not in str(caught.value)


def test_the_short_names_of_postgresql(postgres_url: str) -> None:
    database = Database.open(postgres_url.replace("postgresql://", "postgres://"))
    database.transact(add("ann"))
    assert names(database) == ["ann"]
    database.close()


def test_what_is_committed_on_sqlite_survives_a_power_cut(sqlite_database: Database) -> None:
    with sqlite_database.engine.connect() as connection:
        found = {
            name: connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


# --- transactions ------------------------------------------------------------------------------


def test_all_of_a_transaction_or_nothing(database: Database) -> None:
    def fails(session: Session) -> None:
        annotator_named(session, "ann")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        database.transact(fails)
    assert names(database) == []


def test_writers_who_add_the_same_at_the_same_time_both_succeed(database: Database) -> None:
    start = threading.Barrier(8)
    ids = []

    def write() -> None:
        for number in range(5):
            start.wait(30)
            ids.append(database.transact(add(f"ann {number}")))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ids) == 40
    assert len(set(ids)) == 5
    assert names(database) == [f"ann {number}" for number in range(5)]


def test_objects_stay_readable_after_their_transaction(database: Database) -> None:
    assert database.transact(lambda session: annotator_named(session, "ann")).name == "ann"


def test_readers_do_not_wait_for_a_writer_and_keep_their_view(database: Database) -> None:
    with database.reading() as session:
        count = select(func.count()).select_from(Annotator)
        assert session.scalar(count) == 0
        database.transact(add("ann"))
        assert session.scalar(count) == 0
    assert names(database) == ["ann"]


def test_a_reader_cannot_write_by_mistake(database: Database) -> None:
    with pytest.raises(RuntimeError, match="transact"), database.reading() as session:
        session.add(AuditEntry(action="lost", details={}))


def test_what_contradicts_the_tables_is_refused_in_a_sentence(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MAX_ATTEMPTS", 2)
    with pytest.raises(StoreError, match="nothing was saved"):
        database.transact(lambda session: session.add(AuditEntry(annotator_id=77, action="x", details={})))


# --- faults ------------------------------------------------------------------------------------


def test_a_database_locked_for_too_long(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT", 0.1)
    database = Database.open(sqlite_url)
    other = sqlite3.connect(tmp_path / "annotations.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="busy"):
        database.transact(add("ann"))
    assert names(database) == []
    other.execute("ROLLBACK")
    other.close()
    database.transact(add("ann"))
    assert names(database) == ["ann"]
    database.close()


def test_a_thread_that_keeps_the_others_waiting(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT", 0.1)
    begun, end = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        annotator_named(session, "slow")
        begun.set()
        end.wait(10)

    thread = threading.Thread(target=sqlite_database.transact, args=(slow,))
    thread.start()
    begun.wait(10)
    with pytest.raises(StoreError, match="busy"):
        sqlite_database.transact(add("ann"))
    end.set()
    thread.join(60)
    assert names(sqlite_database) == ["slow"]


def test_more_threads_than_connections(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT", 0.1)
    database = Database.open(sqlite_url)
    sessions = [database.reading() for _ in range(6)]
    try:
        for session in sessions[:5]:
            session.__enter__().execute(select(Annotator))
        with pytest.raises(StoreError, match="busy"), sessions[5] as session:
            session.execute(select(Annotator))
    finally:
        for session in sessions[:5]:
            session.__exit__(None, None, None)
    assert names(database) == []
    database.close()


def write_until_full(database: Database) -> int:
    """Save entries of ten kilobytes; returns how many were acknowledged."""
    for saved in range(10_000):
        try:
            database.transact(
                lambda session: session.add(AuditEntry(action="x", details={"text": "x" * 10_000}))
            )
        except StoreError as error:
            assert "disk is full" in str(error)
            return saved
    raise AssertionError("the disk never filled up")


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path, sqlite_template: Path) -> None:
    path = small_disk / "annotations.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database.open(f"sqlite:///{path}")
    saved = write_until_full(database)
    assert saved > 5
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == saved
        assert session.scalar(text("PRAGMA integrity_check")) == "ok"
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)  # somebody makes room
    database.transact(add("ann"))
    assert names(database) == ["ann"]
    database.close()


def test_a_database_at_its_size_limit_says_so(sqlite_database: Database) -> None:
    sqlite_database.engine.dispose()
    event.listen(
        sqlite_database.engine,
        "connect",
        lambda connection, _: connection.execute("PRAGMA max_page_count = 100"),
    )
    saved = write_until_full(sqlite_database)
    with sqlite_database.reading() as session:
        assert session.scalar(select(func.count()).select_from(AuditEntry)) == saved


def test_a_short_outage_of_postgresql_is_bridged(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MAX_ATTEMPTS", 10)  # for machines on which it takes long to start
    database = Database.open(postgres_url)
    database.transact(add("before"))
    postgres.stop(kill=True)
    back = threading.Timer(0.5, postgres.start)
    back.start()
    database.transact(add("meanwhile"))
    back.join(60)
    assert names(database) == ["before", "meanwhile"]
    database.close()


def test_an_outage_of_postgresql_is_told_and_over_once_it_runs_again(
    postgres: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "MAX_ATTEMPTS", 3)
    database = Database.open(postgres_url)
    database.transact(add("before"))
    postgres.stop(kill=True)
    try:
        for use in (lambda: database.transact(add("lost")), lambda: names(database)):
            with pytest.raises(StoreError, match=re.compile("cannot be reached.*DATABASE_URL", re.DOTALL)):
                use()
        with pytest.raises(StoreError, match="cannot be reached"):
            Database.open(postgres_url)
    finally:
        postgres.start()
    assert names(database) == ["before"]
    database.transact(add("after"))
    assert names(database) == ["after", "before"]
    database.close()


def test_a_connection_lost_within_a_transaction_is_made_anew(postgres_url: str) -> None:
    database, other = Database.open(postgres_url), Database.open(postgres_url)
    tries = []

    def work(session: Session) -> None:
        tries.append(session.scalar(select(func.pg_backend_pid())))
        annotator_named(session, "ann")
        if len(tries) == 1:
            other.transact(lambda another: another.scalar(select(func.pg_terminate_backend(tries[0]))))
            time.sleep(0.05)

    database.transact(work)
    assert len(tries) == 2
    assert names(database) == ["ann"]
    database.close()
    other.close()
