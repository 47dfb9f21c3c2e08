"""Real databases for the tests: files of SQLite, and a PostgreSQL server of the tests' own."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import postgres_server
import pytest
from hub_server import Hub, reached, serving
from PIL import Image
from postgres_server import PostgresServer

from annotation.store import Database, ImageFiles, Store


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with empty tables, to be copied: that is quicker than to make them again."""
    path = tmp_path_factory.mktemp("template") / "empty.db"
    Database.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """URL of an SQLite database of this test's own."""
    path = tmp_path / "annotations.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    database = Database.open(sqlite_url)
    yield database
    database.close()


@pytest.fixture
def store(sqlite_database: Database, tmp_path: Path) -> Store:
    """An SQLite database with its folder of images."""
    return Store(sqlite_database, ImageFiles(tmp_path / "images"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server; skips where there is none and none can be installed."""
    try:
        yield from postgres_server.running()
    except postgres_server.Unavailable as error:
        if os.environ.get("M3AGIQA_REQUIRE_POSTGRES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    name = postgres.create()
    Database.open(postgres.url(name)).close()
    return name


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_template: str) -> Iterator[str]:
    """URL of a PostgreSQL database of this test's own."""
    name = postgres.create(postgres_template)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a database of this test's own, which is run once on SQLite and once on PostgreSQL."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of this test's own, which is run once on SQLite and once on PostgreSQL."""
    database = Database.open(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """Makes the content of a PNG file: the same for the same number, another one for another."""

    def make(number: int = 0) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, number // 65536)).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face Hub that takes what is pushed."""
    (tmp_path / "hub").mkdir()
    with serving() as hub:
        hub.folder = tmp_path / "hub"
        reached(monkeypatch, hub.url, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        yield hub
