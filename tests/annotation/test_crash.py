"""The running app under twenty people at once, and killed in the midst of their work."""

import random
import socket
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import argon2
import httpx
import pytest
from app_server import forked_apps
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from annotation.store import Store, queue
from annotation.store.items import add_item
from annotation.store.models import Submission
from annotation.users import Role, User, put_user
from m3agiqa.aspects import Aspect

ROOT = Path(__file__).parents[2]
PASSWORD = "correct horse"
PATIENCE = 120  # seconds; far more than a start takes, so that a busy machine does not fail tests
QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Servers:
    """Starts the app on one port, as often as wanted."""

    def __init__(self, log: Path) -> None:
        self._port, self._log = _lasting_port(), log
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, environment: dict[str, str]) -> int:
        return forked_apps().start(self._port, self._log, **environment)


def _lasting_port() -> int:
    """A free port that stays free between two servers.

    It is below those that the system gives to clients: who tries again and again to connect to one of those,
    while nobody listens there, will once be connected to themselves, and then it is taken.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no free port")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    log = tmp_path_factory.mktemp("servers") / "log.txt"
    yield Servers(log)
    assert "Traceback" not in log.read_text()


class Person:
    """An annotator at work over HTTP, who signs in again and repeats a request when the server has died."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.given: list[int] = []
        self.saved: dict[str, dict[str, int]] = {}
        """Corrections by aspect that the server has acknowledged, by token."""
        self._client = httpx.Client(base_url=url, timeout=PATIENCE)

    def work(self) -> None:
        """Judge whatever the queue has for this person."""
        while items := self._call("take", 10, "random", "all", False, False)["items"]:
            for view in items:
                self.given.append(view["item"])
                token = uuid.uuid4().hex
                said = [{"aspect": aspect, "score": 1 + view["item"] % 5} for aspect in Aspect]
                answer = self._call("save", view["item"], said, token, None, 1.0, False)
                self.saved[token] = answer["corrections"]

    def _call(self, endpoint: str, *data: object) -> dict:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._client.post(f"/gradio_api/run/{endpoint}", json={"data": data})
                if answer.status_code != httpx.codes.UNAUTHORIZED:
                    assert answer.is_success, answer.text
                    return answer.json()["data"][0]
                self._client.post("/login", data={"username": self.name, "password": PASSWORD})
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the server does not come back"
                time.sleep(0.05)


@dataclass(frozen=True)
class Studio:
    """A database with items to judge, and people who do."""

    servers: Servers
    folder: Path
    database_url: str
    png: bytes

    def prepare(self, items: int, overlap: int, people: int) -> list[Person]:
        store = self.open()
        image = store.images.add(self.png, "image.png")

        def fill(session: Session) -> None:
            ids = [add_item(session, image, f"prompt {number}", "import")[0].id for number in range(items)]
            queue.enqueue(session, ids, overlap)

        store.database.transact(fill)
        store.close()
        names = [f"person-{number}" for number in range(people)]
        for name in names:
            put_user(self.users, User.new(name, Role.ANNOTATOR, PASSWORD, QUICK))
        return [Person(name, self.servers.url) for name in names]

    @property
    def users(self) -> Path:
        return self.folder / "users.txt"

    def open(self) -> Store:
        return Store.open(self.database_url, self.folder / "images")

    def serve(self) -> int:
        return self.servers.start(
            {
                "M3AGIQA_DATA": str(self.folder),
                "DATABASE_URL": self.database_url,
                "M3AGIQA_AUTH": str(self.users),
            }
        )

    def check(self, people: list[Person], items: int, overlap: int) -> None:
        """That the database holds what was acknowledged, neither more nor less, and each item's overlap."""
        store = self.open()
        with store.database.reading() as session:
            submissions = session.scalars(select(Submission).options(selectinload(Submission.corrections)))
            kept = {
                submission.token: {one.aspect: one.id for one in submission.corrections}
                for submission in submissions
            }
            progress = queue.progress(session, people[0].name)
        store.close()
        assert kept == {token: saved for person in people for token, saved in person.saved.items()}
        assert len(kept) == items * overlap
        assert all(set(saved) == set(Aspect) for saved in kept.values())
        given = Counter(item for person in people for item in set(person.given))
        assert set(given.values()) == {overlap}
        assert len(given) == items
        assert progress.done == progress.total == items * overlap


@pytest.fixture
def studio(servers: Servers, tmp_path: Path, database_url: str, png: Callable[[int], bytes]) -> Studio:
    return Studio(servers, tmp_path, database_url, png(0))


def test_twenty_people_save_over_http_at_once(studio: Studio) -> None:
    # How many corrections a database takes is in store/test_many_writers.py; here the server takes the time.
    people = studio.prepare(items=4, overlap=20, people=20)
    server = studio.serve()
    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(Person.work, people))
    forked_apps().kill(server)
    studio.check(people, items=4, overlap=20)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nothing_acknowledged_is_lost_when_the_server_is_killed(studio: Studio) -> None:
    people = studio.prepare(items=36, overlap=2, people=5)
    moments = sorted(random.sample(range(1, 55), 4))  # of 72; who has seen the last items ends early
    server = studio.serve()
    with ThreadPoolExecutor(len(people)) as pool:
        working = [pool.submit(person.work) for person in people]
        for moment in moments:
            while sum(len(person.saved) for person in people) < moment:
                assert not all(work.done() for work in working)
                for work in working:
                    assert not (work.done() and work.exception()), work.exception()
                time.sleep(0.005)
            forked_apps().kill(server)
            server = studio.serve()
        for work in working:
            work.result()
    forked_apps().kill(server)

    studio.check(people, items=36, overlap=2)
    connection = sqlite3.connect(studio.database_url.removeprefix("sqlite:///"))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
