"""A database of annotations: opened and brought up to date, written to and read in transactions."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from annotation.store import migrations
from m3agiqa.errors import InputError, M3AgiqaError

LOCK_TIMEOUT = 30.0  # seconds to wait for other writers
MAX_ATTEMPTS = 7  # of a transaction: about three seconds, which is enough for a hiccup of the network
MAX_CONNECTIONS = 30  # at most, per process; PostgreSQL allows 100 by default

QUERY_CHUNK = 1000  # ids per query: databases limit the number of parameters

Result = TypeVar("Result")
Row = TypeVar("Row")
Id = TypeVar("Id", int, str)


class StoreError(M3AgiqaError):
    """The database or the folder of images cannot be used right now; nothing has been saved."""


class Database:
    """SQLite or PostgreSQL, through SQLAlchemy. Threads may share it; processes open their own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._turn = threading.Lock()
        self._writing = sessionmaker(
            engine.execution_options(sqlite_begin="BEGIN IMMEDIATE"), expire_on_commit=False
        )
        one_view = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ"}  # SQLite knows no other
        self._reading = sessionmaker(engine.execution_options(**one_view), expire_on_commit=False)
        event.listen(self._reading, "before_flush", _refuse_to_write)

    @classmethod
    def open(cls, url: str) -> Database:
        """Create the database if need be and bring its tables up to date. Raises StoreError."""
        database = cls(_engine(url))
        try:
            database._retrying(database._migrate)
        except M3AgiqaError:
            database.close()
            raise
        return database

    def transact(self, work: Callable[[Session], Result]) -> Result:
        """Run `work` in one transaction: once this returns, all of it is on disk, else nothing is.

        After a conflict with another writer or a lost connection `work` is run again, so it must have no
        effects outside the session. Objects of the session stay readable afterwards. Raises StoreError.
        """

        def attempt() -> Result:
            with self._turn_to_write(), self._writing.begin() as session:
                return work(session)

        return self._retrying(attempt)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries, which all see the same state. Raises StoreError."""
        try:
            with self._reading() as session:
                yield session
                session.flush()  # refused if anything was changed, which would else be lost silently
        except (DBAPIError, PoolTimeoutError) as error:
            raise StoreError(_sentence(error)) from error

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _turn_to_write(self) -> Iterator[None]:
        """SQLite has one writer at a time: threads queue up here, where they need not poll for its lock."""
        if not self._is_sqlite:
            yield
        elif self._turn.acquire(timeout=LOCK_TIMEOUT):
            try:
                yield
            finally:
                self._turn.release()
        else:
            raise StoreError(DATABASE_BUSY)

    def _retrying(self, attempt: Callable[[], Result]) -> Result:
        for tried in range(1, MAX_ATTEMPTS + 1):
            try:
                return attempt()
            except (DBAPIError, PoolTimeoutError) as error:
                if tried == MAX_ATTEMPTS or not self._may_go_better(error):
                    raise StoreError(_sentence(error)) from error
                time.sleep(random.uniform(0.5, 1) * 0.03 * 2**tried)
        raise AssertionError("unreachable")

    def _may_go_better(self, error: DBAPIError | PoolTimeoutError) -> bool:
        """Whether the transaction met another writer, or a connection that could be made anew."""
        if isinstance(error, PoolTimeoutError) or self._is_sqlite:
            return False  # both have waited already
        return (
            isinstance(error, IntegrityError)  # e.g. two writers have added the same annotator
            or error.connection_invalidated
            or _sqlstate(error)[:2] in ("", "08", "40", "57")  # no or lost connection, conflict, shutdown
        )

    def _migrate(self) -> None:
        with self.engine.connect() as connection:
            current = migrations.revision(connection)
        if current == migrations.latest():
            return
        if current is not None and not migrations.knows(current):
            raise StoreError(
                f"The database was written by a newer version of M3-AGIQA Studio (revision {current}). "
                "Install that version or a later one; nothing has been changed."
            )
        with self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
            migrations.upgrade(connection)


# --- connecting --------------------------------------------------------------------------------


def _engine(text: str) -> Engine:
    try:
        url = make_url(text)
        if url.drivername in ("postgres", "postgresql"):
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() == "sqlite":
            return _sqlite_engine(url)
        if url.get_backend_name() == "postgresql":
            lasting = {"connect_timeout": "10", "tcp_user_timeout": "10000", **url.query}
            url = url.set(query=lasting)
        return create_engine(
            url, pool_size=5, max_overflow=MAX_CONNECTIONS - 5, pool_timeout=LOCK_TIMEOUT, pool_pre_ping=True
        )
    except ModuleNotFoundError as error:
        raise StoreError(
            f"DATABASE_URL needs the Python package {error.name!r}, which is not installed; "
            'for PostgreSQL run: pip install "m3agiqa[postgres]"'
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise StoreError(
            "DATABASE_URL cannot be understood; give something like sqlite:///data/annotations.db "
            "or postgresql://user:password@host/database."
        ) from error


def _sqlite_engine(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise StoreError(
            "DATABASE_URL names a database in memory, which would forget everything; "
            "name a file, such as sqlite:///data/annotations.db."
        )
    if "uri" not in url.query:  # else it is no path
        _make_folder(Path(url.database).parent)
    engine = create_engine(
        url,
        connect_args={"timeout": LOCK_TIMEOUT},
        pool_size=5,
        max_overflow=MAX_CONNECTIONS - 5,
        pool_timeout=LOCK_TIMEOUT,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder {folder} cannot be made ({error.strerror}); "
            "choose another with M3AGIQA_DATA or DATABASE_URL."
        ) from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # no BEGIN of Python's own; see _begin_sqlite
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")  # what is acknowledged survives a power cut
    _switch_to_wal(connection)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """So that readers and the writer need not wait for each other. A file stays so once it is."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return  # even if a network folder has refused: it works without, only slower
        except sqlite3.OperationalError as error:
            # Of two processes that switch at once one fails, for SQLite does not wait here.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the lock at once: one that read first could find its view outdated and fail."""
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


def _refuse_to_write(*_: object) -> None:
    raise RuntimeError("Database.reading() is for queries; use Database.transact() to write")


# --- rows ------------------------------------------------------------------------------------


def get_or_add(session: Session, kind: type[Row], known_by: dict[str, Any], **others: Any) -> Row:
    """The row that has these values; a new one, which has the others too, if there is none yet."""
    row = session.scalar(select(kind).filter_by(**known_by))
    if row is None:
        row = kind(**known_by, **others)
        session.add(row)
        session.flush()
    return row


def query_chunks(ids: Iterable[Id]) -> Iterator[list[Id]]:
    """Ids in ascending order, each once, as many at a time as one query may name."""
    ordered = sorted(set(ids))
    for start in range(0, len(ordered), QUERY_CHUNK):
        yield ordered[start : start + QUERY_CHUNK]


# --- texts ---------------------------------------------------------------------------------


def storable(text: str) -> str:
    """Without NUL and lone surrogates, which databases refuse, and without white space around it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode().strip()


def storable_within(text: str, limit: int, what: str) -> str:
    """`storable`, of at most `limit` characters. Raises InputError naming `what` is too long."""
    text = storable(text)
    if len(text) > limit:
        raise InputError(f"The {what} has {len(text):,} characters; shorten it to at most {limit:,}.")
    return text


# --- what went wrong, in a sentence ------------------------------------------------------------

DATABASE_BUSY = "The database is busy with somebody else's work; nothing was saved. Try again in a moment."
DISK_FULL = "The disk is full; nothing was saved. Make room on the server's disk and try again."
SERVER_UNREACHABLE = (
    "The database server cannot be reached; nothing was saved. Try again in a moment, "
    "or see whether it runs and DATABASE_URL is right."
)

SQLITE_SENTENCES = {
    sqlite3.SQLITE_BUSY: DATABASE_BUSY,
    sqlite3.SQLITE_LOCKED: DATABASE_BUSY,
    sqlite3.SQLITE_FULL: DISK_FULL,
    sqlite3.SQLITE_NOTADB: (
        "The database file is no database; move it away, or name another file with DATABASE_URL."
    ),
    sqlite3.SQLITE_CORRUPT: "The database file is damaged; put a backup in its place.",
    sqlite3.SQLITE_CANTOPEN: (
        "The database file cannot be opened; check that its folder exists and may be written to."
    ),
    sqlite3.SQLITE_READONLY: (
        "The database file may not be written to; change the permissions of it and of its folder."
    ),
    sqlite3.SQLITE_IOERR: "The disk of the database cannot be read or written; nothing was saved.",
}

POSTGRES_SENTENCES = {  # by the first characters of SQLSTATE
    "53100": DISK_FULL,
    "53300": DATABASE_BUSY,  # too many connections
    "53": "The database server is out of resources; nothing was saved. Try again in a moment.",
    "55P03": DATABASE_BUSY,
    "40": DATABASE_BUSY,
    "08": SERVER_UNREACHABLE,
    "57": SERVER_UNREACHABLE,
    "42501": "The database server does not let this user write; grant the right, or change DATABASE_URL.",
    "25006": "The database server is read-only at present; nothing was saved.",
}


def _sqlstate(error: DBAPIError) -> str:
    """PostgreSQL's code of an error; "" if it never came to a conversation."""
    return getattr(error.orig, "sqlstate", None) or ""


def _sentence(error: DBAPIError | PoolTimeoutError) -> str:
    if isinstance(error, PoolTimeoutError):
        return DATABASE_BUSY
    if (code := getattr(error.orig, "sqlite_errorcode", None)) is not None:
        known = SQLITE_SENTENCES.get(code & 0xFF)  # the higher bits only tell variants apart
    elif error.connection_invalidated:
        known = SERVER_UNREACHABLE
    elif not (state := _sqlstate(error)):
        reason = str(error.orig).partition("\n")[0].rpartition("failed: ")[2]
        known = f"{SERVER_UNREACHABLE} ({reason})"
    else:
        known = next((s for start, s in POSTGRES_SENTENCES.items() if state.startswith(start)), None)
    return known or f"The database refused this, and nothing was saved: {error.orig}"
