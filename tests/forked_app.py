"""Starts the app with the scripted model again and again, without importing everything each time.

Each line of standard input is a JSON list. ["start", log, environment] starts a server in a fork of this
process and is answered by its id; ["kill", id] is answered once it is gone. All end when the input does.
"""

import json
import os
import signal
import sys
import traceback

import gradio.http_server
import gradio.networking
import gradio.oauth
import scripted_app
from huggingface_hub import constants


def start(log: str, environment: dict[str, str]) -> int:
    process = os.fork()
    if process == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):  # standard output is for the answers
            os.dup2(output, descriptor)
        os.environ.update(environment)
        gradio.http_server.INITIAL_PORT_VALUE = int(os.environ["GRADIO_SERVER_PORT"])  # read at import
        for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
            setattr(gradio.oauth, name, os.environ.get(name))  # likewise
        constants.ENDPOINT = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)  # likewise
        gradio.networking.url_ok = lambda url: True  # on a busy machine it does not wait long enough
        try:
            scripted_app.main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return process


def kill(process: int) -> int:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return process


def main() -> None:
    running = set()
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        process = start(*arguments) if command == "start" else kill(*arguments)
        running ^= {process}
        sys.stdout.write(f"{process}\n")
        sys.stdout.flush()
    for process in running:
        kill(process)


if __name__ == "__main__":
    main()
