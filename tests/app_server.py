"""The app as a subprocess, started as a user would."""

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import argon2
import psutil

from annotation.users import Role, User, put_user

ROOT = Path(__file__).parents[1]
PASSWORD = "a long password"
# Seconds; far more than two idle cores need, so that a busy machine does not fail tests.
PATIENCE = int(os.environ.get("M3AGIQA_TEST_PATIENCE", "60"))


@dataclass(frozen=True)
class Server:
    """A running `python app.py`, or the app with the scripted model."""

    url: str
    process: psutil.Process
    data: Path
    """Its M3AGIQA_DATA: database and images."""

    def cpu_seconds(self) -> float:
        """Processor time that the whole server has used so far."""
        used = self.process.cpu_times()
        return used.user + used.system


class ForkedApps:
    """Servers with the scripted model, forked from one process that has imported everything."""

    def __init__(self) -> None:
        self._forking = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked_app.py")],
            cwd=ROOT,
            env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._forking.stdin.close)

    def start(self, port: int, log: Path, **environment: str) -> int:
        """Gives the process id; the server answers a moment later."""
        return self._ask("start", str(log), {"GRADIO_SERVER_PORT": str(port), **environment})

    def kill(self, process: int) -> None:
        """With SIGKILL; returns once it is gone."""
        self._ask("kill", process)

    def _ask(self, *command: object) -> int:
        self._forking.stdin.write(json.dumps(command) + "\n")
        self._forking.stdin.flush()
        return int(self._forking.stdout.readline())


@cache
def forked_apps() -> ForkedApps:
    """Those of this test process."""
    return ForkedApps()


@contextmanager
def serve_scripted(log: Path, others_may_fail: bool = False, **environment: str) -> Iterator[Server]:
    """The app with the scripted model, as `serve` starts it."""
    port, environment = _free_port(), {"M3AGIQA_DATA": str(log.with_name("data")), **environment}
    process = forked_apps().start(port, log, **environment)
    try:
        _await(port, log, lambda: psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
        yield Server(f"http://127.0.0.1:{port}", psutil.Process(process), Path(environment["M3AGIQA_DATA"]))
    finally:
        forked_apps().kill(process)
    _check(log, others_may_fail)


@contextmanager
def serve_team(
    folder: Path, environment: Mapping[str, str] = MappingProxyType({}), **roles: Role
) -> Iterator[Server]:
    """The app with the scripted model and a login, for people who all have the same PASSWORD."""
    quick = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    for name, role in roles.items():
        put_user(folder / "users.txt", User.new(name, role, PASSWORD, quick))
    with serve_scripted(folder / "log.txt", M3AGIQA_AUTH=str(folder / "users.txt"), **environment) as running:
        yield running


@contextmanager
def serve(
    log: Path,
    command: Sequence[str | Path] = (sys.executable, ROOT / "app.py"),
    cwd: Path = ROOT,
    **environment: str,
) -> Iterator[Server]:
    """Start the app on a free port, with a data folder beside the log, and end it afterwards."""
    port, data = _free_port(), environment.setdefault("M3AGIQA_DATA", str(log.with_name("data")))
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=output)
    try:
        _await(port, log, lambda: process.poll() is None)
        yield Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(data))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
    _check(log)


def _check(log: Path, others_may_fail: bool = False) -> None:
    """There must be no traceback, or with `others_may_fail` none that passes through the app's own code."""
    bugs = [f'File "{ROOT / part}' for part in ("app.py", "annotation", "m3agiqa")]
    said = log.read_text()
    assert not any(bug in said for bug in (bugs if others_may_fail else ["Traceback"])), said


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await(port: int, log: Path, is_running: Callable[[], bool]) -> None:
    """Until the app answers, which it must do in time."""
    deadline = time.monotonic() + 2 * PATIENCE
    while not _answers(port):
        assert is_running(), log.read_text()
        assert time.monotonic() < deadline, f"the app did not start:\n{log.read_text()}"
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
