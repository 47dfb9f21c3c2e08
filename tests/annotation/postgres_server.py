"""A real PostgreSQL server for the tests, from the machine's own packages."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg

USER = "studio"
START = 60  # seconds
INSTALLATION = 600


class Unavailable(Exception):
    """There is no PostgreSQL here; the message says why."""


def find_binaries() -> Path:
    """The folder of `initdb` and `postgres`; installs Debian's package where that is possible."""
    found = _installed()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        options = {"env": environment, "capture_output": True, "timeout": INSTALLATION, "check": True}
        try:
            subprocess.run(["apt-get", "update", "-qq"], **options)
            subprocess.run(["apt-get", "install", "-y", "-qq", "postgresql"], **options)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"Debian's package postgresql could not be installed: {error}") from error
        found = _installed()
    if found is None:
        raise Unavailable("PostgreSQL is not installed (no initdb on PATH or in /usr/lib/postgresql)")
    return found


def _installed() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    on_path = shutil.which("initdb")
    found = next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)
    return found or (Path(on_path).resolve().parent if on_path else None)


class PostgresServer:
    """A server with its data in a temporary folder, listening on a socket there and nowhere else."""

    def __init__(self) -> None:
        self.binaries = find_binaries()
        self.folder = Path(tempfile.mkdtemp(prefix="m3agiqa-pg-", dir="/tmp"))  # sockets need short paths
        self.data = self.folder / "data"
        # The server refuses to run as root.
        self.user = _other_user() if os.geteuid() == 0 else None
        if self.user is not None:
            shutil.chown(self.folder, self.user)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()
        self._run(
            "initdb", "-D", self.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )

    def start(self) -> None:
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-k", self.folder, "-F",
                 "-c", "listen_addresses=", "-c", "max_connections=200"],
                **self._as_user(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START
        while subprocess.run(
            [self.binaries / "pg_isready", "-q", "-h", self.folder, "-U", USER, "-d", "postgres"]
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"PostgreSQL did not start: {(self.folder / 'log.txt').read_text()}")
            time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """End it: politely, or as a power cut would."""
        if self._process is not None:
            # Quit takes the server's own children along, which SIGKILL would leave to themselves.
            self._process.send_signal(signal.SIGQUIT if kill else signal.SIGINT)
            self._process.wait(START)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.folder}"

    def create(self, template: str = "template0") -> str:
        """Make a database, as a copy of another one; returns its name."""
        name = f"test{next(self._numbers)}"
        self._command(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self._command(f"DROP DATABASE {name} WITH (FORCE)")

    def _command(self, text: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(text)

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self.binaries / program, *arguments], **self._as_user(), capture_output=True, text=True
        )
        if done.returncode:
            raise Unavailable(f"{program} failed: {done.stderr}")

    def _as_user(self) -> dict[str, object]:
        if self.user is None:
            return {"cwd": self.folder}
        group = pwd.getpwnam(self.user).pw_gid
        return {"cwd": self.folder, "user": self.user, "group": group, "extra_groups": []}


def _other_user() -> str:
    known = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def running() -> Iterator[PostgresServer]:
    """A started server, removed in the end. Raises Unavailable."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
