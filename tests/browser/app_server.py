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
# Seconds; far more than two idle cores need, so that a busy machine does not fail tests.
PATIENCE = int(os.environ.get("M3AGIQA_TEST_PATIENCE", "60"))


@dataclass(frozen=True)
class Server:
    """A running `python app.py`."""

    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Processor time that the whole server has used so far."""
        used = self.process.cpu_times()
        return used.user + used.system


@contextmanager
def serve(log: Path, **environment: str) -> Iterator[Server]:
    """Start the app on a free port, and end it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 2 * PATIENCE
        while not _answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"the app did not start:\n{log.read_text()}"
            time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
