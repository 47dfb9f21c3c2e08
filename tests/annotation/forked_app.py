"""Starts the app with the scripted model again and again, without importing everything each time.

Each line of standard input is a JSON object of environment variables: it starts a server with them in a fork
of this process, whose id is the answer. Whoever asks for another one has killed it before; the last one ends
when the input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "browser"))

import scripted_app


def fork(environment: dict[str, str]) -> int:
    process = os.fork()
    if process == 0:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is for the answers
        os.environ.update(environment)
        try:
            scripted_app.main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return process


def main() -> None:
    server = None
    for line in sys.stdin:
        if server is not None:
            os.waitpid(server, 0)  # it has been killed; its port is free once it is gone
        server = fork(json.loads(line))
        sys.stdout.write(f"{server}\n")
        sys.stdout.flush()
    if server is not None:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


if __name__ == "__main__":
    main()
