"""The app as a subprocess, started as a user would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SCRIPTED = Path(__file__).with_name("scripted_app.py")
"""The app with a quick model that follows a script."""
# Seconds; far more than two idle cores need, so that a busy machine does not fail tests.
PATIENCE = int(os.environ.get("M3AGIQA_TEST_PATIENCE", "60"))


@dataclass(frozen=True)
class Server:
    """A running `python app.py`, or another script that serves the app."""

    url: str
    process: psutil.Process
    data: Path
    """Its M3AGIQA_DATA: database and images."""

    def cpu_seconds(self) -> float:
        """Processor time that the whole server has used so far."""
        used = self.process.cpu_times()
        return used.user + used.system


@contextmanager
def serve(
    log: Path, script: Path = ROOT / "app.py", others_may_fail: bool = False, **environment: str
) -> Iterator[Server]:
    """Start the app on a free port, with a data folder beside the log, and end it afterwards.

    The log must hold no traceback, or with `others_may_fail` none that passes through the app's own code.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = environment.setdefault("M3AGIQA_DATA", str(log.with_name("data")))
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, script], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 2 * PATIENCE
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"the app did not start:\n{log.read_text()}"
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid), Path(data))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    bugs = [f'File "{ROOT / part}' for part in ("app.py", "annotation", "m3agiqa")]
    said = log.read_text()
    assert not any(bug in said for bug in (bugs if others_may_fail else ["Traceback"])), said


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
